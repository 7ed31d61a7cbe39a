graph @Residual(%x: f32[N, 3, 8, 8]) {
  param @stem.weight: f32[4, 3, 3, 3]
  param @a.weight: f32[6, 4, 3, 3]
  param @a.bias: f32[6]
  param @b.weight: f32[4, 6, 3, 3]
  param @head.weight: f32[5, 10]

  %stem = aten.conv2d(%x, @stem.weight) {padding = [1, 1]}: f32[N, 4, 8, 8]
  %a = aten.conv2d(%stem, @a.weight, @a.bias) {padding = [1, 1]}: f32[N, 6, 8, 8]
  %relu = aten.relu(%a): f32[N, 6, 8, 8]
  %b = aten.conv2d(%relu, @b.weight) {padding = [1, 1]}: f32[N, 4, 8, 8]
  %sum = aten.add.Tensor(%stem, %b): f32[N, 4, 8, 8]
  %cat = aten.cat([%sum, %relu]) {dim = 1}: f32[N, 10, 8, 8]
  %pool = aten.adaptive_avg_pool2d(%cat) {output_size = [1, 1]}: f32[N, 10, 1, 1]
  %flat = aten.reshape(%pool) {shape = [N, 10]}: f32[N, 10]
  %head = aten.linear(%flat, @head.weight): f32[N, 5]
  return %head
}
