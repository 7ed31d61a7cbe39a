graph @Residual(%x: f32[N, 3, 8, 8]) {
  channels $stem = 4
  channels $a = 6
  channels $head = 5 frozen("model output")

  param @stem.weight: f32[$stem, 3, 3, 3]
  param @a.weight: f32[$a, $stem, 3, 3]
  param @a.bias: f32[$a]
  param @b.weight: f32[$stem, $a, 3, 3]
  param @head.weight: f32[$head, $stem ++ $a]

  %stem = aten.conv2d(%x, @stem.weight) {padding = [1, 1]}: f32[N, $stem, 8, 8]
  %a = aten.conv2d(%stem, @a.weight, @a.bias) {padding = [1, 1]}: f32[N, $a, 8, 8]
  %relu = aten.relu(%a): f32[N, $a, 8, 8]
  %b = aten.conv2d(%relu, @b.weight) {padding = [1, 1]}: f32[N, $stem, 8, 8]
  %sum = aten.add.Tensor(%stem, %b): f32[N, $stem, 8, 8]
  %cat = aten.cat([%sum, %relu]) {dim = 1}: f32[N, $stem ++ $a, 8, 8]
  %pool = aten.adaptive_avg_pool2d(%cat) {output_size = [1, 1]}: f32[N, $stem ++ $a, 1, 1]
  %flat = aten.reshape(%pool) {shape = [N, 10]}: f32[N, $stem ++ $a]
  %head = aten.linear(%flat, @head.weight): f32[N, $head]
  return %head
}
