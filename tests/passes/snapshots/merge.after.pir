graph @Chain(%x: f32[N, 3, 8, 8]) {
  param @a.weight: f32[4, 3, 3, 3]
  param @b.weight: f32[4, 4, 3, 3]
  param @c.weight: f32[2, 4, 3, 3]
  param @"c.weight#1": f32[2, 4, 3, 3]

  %a = aten.conv2d(%x, @a.weight) {padding = [1, 1]}: f32[N, 4, 8, 8]
  %relu = aten.relu(%a): f32[N, 4, 8, 8]
  %b = aten.conv2d(%relu, @b.weight) {padding = [1, 1]}: f32[N, 4, 8, 8]
  %c = aten.conv2d(%b, @c.weight) {padding = [1, 1]}: f32[N, 2, 8, 8]
  %c_1 = aten.conv2d(%b, @"c.weight#1") {padding = [1, 1]}: f32[N, 2, 8, 8]
  return (%c, %c_1)
}
