graph @SqueezeExcite(%x: f32[N, 4, 8, 8]) {
  param @conv.weight: f32[8, 4, 3, 3]
  param @conv.bias: f32[8]
  param @down.weight: f32[2, 8, 1, 1]
  param @down.bias: f32[2]
  param @up.weight: f32[8, 2, 1, 1]
  param @up.bias: f32[8]

  %conv2d = aten.conv2d(%x, @conv.weight, @conv.bias) {padding = [1, 1]}: f32[N, 8, 8, 8]
  %silu = aten.silu(%conv2d): f32[N, 8, 8, 8]
  %adaptive_avg_pool2d = aten.adaptive_avg_pool2d(%silu) {output_size = [1, 1]}: f32[N, 8, 1, 1]
  %conv2d_1 = aten.conv2d(%adaptive_avg_pool2d, @down.weight, @down.bias): f32[N, 2, 1, 1]
  %relu = aten.relu(%conv2d_1): f32[N, 2, 1, 1]
  %conv2d_2 = aten.conv2d(%relu, @up.weight, @up.bias): f32[N, 8, 1, 1]
  %sigmoid = aten.sigmoid(%conv2d_2): f32[N, 8, 1, 1]
  %mul = aten.mul.Tensor(%silu, %sigmoid): f32[N, 8, 8, 8]
  return %mul
}
