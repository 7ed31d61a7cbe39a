graph @Concat(%x: f32[N, 4, 4, 4]) {
  param @left.weight: f32[6, 4, 1, 1]
  param @left.bias: f32[6]
  param @right.weight: f32[2, 4, 1, 1]
  param @right.bias: f32[2]
  param @fc.weight: f32[3, 128]
  param @fc.bias: f32[3]

  %conv2d = aten.conv2d(%x, @left.weight, @left.bias): f32[N, 6, 4, 4]
  %conv2d_1 = aten.conv2d(%x, @right.weight, @right.bias): f32[N, 2, 4, 4]
  %cat = aten.cat([%conv2d, %conv2d_1]) {dim = 1}: f32[N, 8, 4, 4]
  %flatten = aten.flatten.using_ints(%cat) {start_dim = 1}: f32[N, 128]
  %linear = aten.linear(%flatten, @fc.weight, @fc.bias): f32[N, 3]
  return {"both": %cat, "logits": %linear}
}
