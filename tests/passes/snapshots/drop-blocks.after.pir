graph @Blocks(%x: f32[N, 4, 8, 8]) {
  param @b2.a.weight: f32[6, 4, 1, 1]
  param @b2.b.weight: f32[4, 6, 1, 1]

  %relu1 = aten.relu(%x): f32[N, 4, 8, 8]
  %a = aten.conv2d(%relu1, @b2.a.weight): f32[N, 6, 8, 8]
  %inner = aten.relu(%a): f32[N, 6, 8, 8]
  %b = aten.conv2d(%inner, @b2.b.weight): f32[N, 4, 8, 8]
  %sum2 = aten.add.Tensor(%b, %relu1): f32[N, 4, 8, 8]
  %relu2 = aten.relu(%sum2): f32[N, 4, 8, 8]
  return %relu2
}
