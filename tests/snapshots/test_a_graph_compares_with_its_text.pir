graph @Net(%x: f32[N, 3, 8, 8]) {
  param @conv1.weight: f32[4, 3, 3, 3]
  param @conv1.bias: f32[4]
  param @conv2.weight: f32[6, 4, 1, 1]
  param @conv2.bias: f32[6]
  param @fc.weight: f32[5, 6]
  param @fc.bias: f32[5]

  %conv2d = aten.conv2d(%x, @conv1.weight, @conv1.bias) {padding = [1, 1]}: f32[N, 4, 8, 8]
  %relu = aten.relu(%conv2d): f32[N, 4, 8, 8]
  %conv2d_1 = aten.conv2d(%relu, @conv2.weight, @conv2.bias): f32[N, 6, 8, 8]
  %relu_1 = aten.relu(%conv2d_1): f32[N, 6, 8, 8]
  %mean = aten.mean.dim(%relu_1) {dim = [2, 3]}: f32[N, 6]
  %mean_1 = aten.mean.dim(%relu_1) {dim = [2, 3]}: f32[N, 6]
  %dropout = aten.dropout(%mean_1) {p = 0.5, train = mode}: f32[N, 6]
  %linear = aten.linear(%dropout, @fc.weight, @fc.bias): f32[N, 5]
  return {"features": %mean, "logits": %linear}
}
