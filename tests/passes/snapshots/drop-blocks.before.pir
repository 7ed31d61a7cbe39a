graph @Blocks(%x: f32[N, 4, 8, 8]) {
  param @b1.weight: f32[4, 4, 3, 3]
  param @b2.a.weight: f32[6, 4, 1, 1]
  param @b2.b.weight: f32[4, 6, 1, 1]

  %b1 = aten.conv2d(%x, @b1.weight) {padding = [1, 1]}: f32[N, 4, 8, 8]
  %sum1 = aten.add.Tensor(%x, %b1): f32[N, 4, 8, 8]
  %relu1 = aten.relu(%sum1): f32[N, 4, 8, 8]
  %a = aten.conv2d(%relu1, @b2.a.weight): f32[N, 6, 8, 8]
  %inner = aten.relu(%a): f32[N, 6, 8, 8]
  %b = aten.conv2d(%inner, @b2.b.weight): f32[N, 4, 8, 8]
  %sum2 = aten.add.Tensor(%b, %relu1): f32[N, 4, 8, 8]
  %relu2 = aten.relu(%sum2): f32[N, 4, 8, 8]
  return %relu2
}
