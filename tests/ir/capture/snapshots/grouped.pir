graph @Grouped(%x: f32[N, 4, 8, 8]) {
  param @expand.weight: f32[8, 4, 1, 1]
  param @expand.bias: f32[8]
  param @depthwise.weight: f32[8, 1, 3, 3]
  param @depthwise.bias: f32[8]
  param @grouped.weight: f32[12, 2, 3, 3]
  param @grouped.bias: f32[12]

  %conv2d = aten.conv2d(%x, @expand.weight, @expand.bias): f32[N, 8, 8, 8]
  %conv2d_1 = aten.conv2d(%conv2d, @depthwise.weight, @depthwise.bias) {padding = [1, 1], groups = 8}: f32[N, 8, 8, 8]
  %relu6 = aten.relu6(%conv2d_1): f32[N, 8, 8, 8]
  %conv2d_2 = aten.conv2d(%relu6, @grouped.weight, @grouped.bias) {padding = [1, 1], groups = 4}: f32[N, 12, 8, 8]
  return %conv2d_2
}
