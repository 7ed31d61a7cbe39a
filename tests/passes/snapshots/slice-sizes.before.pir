graph @Sizes(%x: f32[N, 6, 4]) {
  param @qkv.weight: f32[24, 4]
  param @norm.weight: f32[8]
  param @norm.bias: f32[8]
  param @out.weight: f32[4, 8]

  %qkv = aten.linear(%x, @qkv.weight): f32[N, 6, 24]
  %q, %k, %v = aten.split_with_sizes(%qkv) {split_sizes = [8, 8, 8], dim = 2}: f32[N, 6, 8], f32[N, 6, 8], f32[N, 6, 8]
  %heads = aten.reshape(%q) {shape = [N, 6, 2, 4]}: f32[N, 6, 2, 4]
  %turned = aten.permute(%heads) {dims = [0, 2, 1, 3]}: f32[N, 2, 6, 4]
  %keys = aten.reshape(%k) {shape = [N, 6, 2, 4]}: f32[N, 6, 2, 4]
  %columns = aten.permute(%keys) {dims = [0, 2, 3, 1]}: f32[N, 2, 4, 6]
  %scores = aten.matmul(%turned, %columns): f32[N, 2, 6, 6]
  %scaled = aten.mul.Tensor(%scores, 0.5): f32[N, 2, 6, 6]
  %share = aten.softmax.int(%scaled) {dim = 3}: f32[N, 2, 6, 6]
  %values = aten.reshape(%v) {shape = [N, 6, 2, 4]}: f32[N, 6, 2, 4]
  %rows = aten.permute(%values) {dims = [0, 2, 1, 3]}: f32[N, 2, 6, 4]
  %mixed = aten.matmul(%share, %rows): f32[N, 2, 6, 4]
  %back = aten.permute(%mixed) {dims = [0, 2, 1, 3]}: f32[N, 6, 2, 4]
  %joined = aten.reshape(%back) {shape = [N, 6, 8]}: f32[N, 6, 8]
  %normed = aten.layer_norm(%joined, @norm.weight, @norm.bias) {normalized_shape = [8]}: f32[N, 6, 8]
  %out = aten.linear(%normed, @out.weight): f32[N, 6, 4]
  return %out
}
