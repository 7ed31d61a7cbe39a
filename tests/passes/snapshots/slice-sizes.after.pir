graph @Sizes(%x: f32[N, 6, 4]) {
  param @qkv.weight: f32[18, 4]
  param @norm.weight: f32[6]
  param @norm.bias: f32[6]
  param @out.weight: f32[4, 6]

  %qkv = aten.linear(%x, @qkv.weight): f32[N, 6, 18]
  %q, %k, %v = aten.split_with_sizes(%qkv) {split_sizes = [6, 6, 6], dim = 2}: f32[N, 6, 6], f32[N, 6, 6], f32[N, 6, 6]
  %heads = aten.reshape(%q) {shape = [N, 6, 2, 3]}: f32[N, 6, 2, 3]
  %turned = aten.permute(%heads) {dims = [0, 2, 1, 3]}: f32[N, 2, 6, 3]
  %keys = aten.reshape(%k) {shape = [N, 6, 2, 3]}: f32[N, 6, 2, 3]
  %columns = aten.permute(%keys) {dims = [0, 2, 3, 1]}: f32[N, 2, 3, 6]
  %scores = aten.matmul(%turned, %columns): f32[N, 2, 6, 6]
  %scaled = aten.mul.Tensor(%scores, 0.5): f32[N, 2, 6, 6]
  %share = aten.softmax.int(%scaled) {dim = 3}: f32[N, 2, 6, 6]
  %values = aten.reshape(%v) {shape = [N, 6, 2, 3]}: f32[N, 6, 2, 3]
  %rows = aten.permute(%values) {dims = [0, 2, 1, 3]}: f32[N, 2, 6, 3]
  %mixed = aten.matmul(%share, %rows): f32[N, 2, 6, 3]
  %back = aten.permute(%mixed) {dims = [0, 2, 1, 3]}: f32[N, 6, 2, 3]
  %joined = aten.reshape(%back) {shape = [N, 6, 6]}: f32[N, 6, 6]
  %normed = aten.layer_norm(%joined, @norm.weight, @norm.bias) {normalized_shape = [6]}: f32[N, 6, 6]
  %out = aten.linear(%normed, @out.weight): f32[N, 6, 4]
  return %out
}
