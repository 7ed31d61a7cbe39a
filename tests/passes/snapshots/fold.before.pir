graph @Norms(%x: f32[N, 3, 8, 8]) {
  param @a.weight: f32[4, 3, 3, 3]
  param @bn1.weight: f32[4]
  param @bn1.bias: f32[4]
  param @b.weight: f32[4, 4, 3, 3]
  param @b.bias: f32[4]
  param @bn2.weight: f32[4]
  param @bn2.bias: f32[4]
  buffer @bn1.running_mean: f32[4]
  buffer @bn1.running_var: f32[4]
  buffer @bn2.running_mean: f32[4]
  buffer @bn2.running_var: f32[4]

  %a = aten.conv2d(%x, @a.weight) {padding = [1, 1]}: f32[N, 4, 8, 8]
  %bn1 = aten.batch_norm(%a, @bn1.weight, @bn1.bias, @bn1.running_mean, @bn1.running_var) {training = mode, momentum = 0.1, eps = 1e-05, cudnn_enabled = true}: f32[N, 4, 8, 8]
  %relu = aten.relu(%bn1): f32[N, 4, 8, 8]
  %b = aten.conv2d(%relu, @b.weight, @b.bias) {padding = [1, 1]}: f32[N, 4, 8, 8]
  %bn2 = aten.batch_norm(%b, @bn2.weight, @bn2.bias, @bn2.running_mean, @bn2.running_var) {training = mode, momentum = 0.1, eps = 1e-05, cudnn_enabled = true}: f32[N, 4, 8, 8]
  %sum = aten.add.Tensor(%bn2, %b): f32[N, 4, 8, 8]
  return %sum
}
