graph @Residual(%x: f32[N, 4, 8, 8]) {
  channels $inner = 8 blocks 2 keep [0:3, 4:7]
  channels $trunk = 8 frozen("model output")

  param @conv1.weight: f32[$inner, 4, 3, 3]
  param @bn1.weight: f32[$inner]
  param @bn1.bias: f32[$inner]
  param @conv2.weight: f32[$trunk, $inner, 3, 3]
  param @bn2.weight: f32[$trunk]
  param @bn2.bias: f32[$trunk]
  param @shortcut.weight: f32[$trunk, 4, 1, 1]
  param @shortcut.bias: f32[$trunk]
  buffer @bn1.running_mean: f32[$inner]
  buffer @bn1.running_var: f32[$inner]
  buffer @bn1.num_batches_tracked: i64[]
  buffer @bn2.running_mean: f32[$trunk]
  buffer @bn2.running_var: f32[$trunk]
  buffer @bn2.num_batches_tracked: i64[]

  %conv2d = aten.conv2d(%x, @conv1.weight) {stride = [2, 2], padding = [1, 1]}: f32[N, $inner, 4, 4]
  %batch_norm = aten.batch_norm(%conv2d, @bn1.weight, @bn1.bias, @bn1.running_mean, @bn1.running_var) {training = mode, momentum = 0.1, eps = 1e-05, cudnn_enabled = true}: f32[N, $inner, 4, 4]
  %relu = aten.relu(%batch_norm): f32[N, $inner, 4, 4]
  %conv2d_1 = aten.conv2d(%relu, @conv2.weight) {padding = [1, 1]}: f32[N, $trunk, 4, 4]
  %batch_norm_1 = aten.batch_norm(%conv2d_1, @bn2.weight, @bn2.bias, @bn2.running_mean, @bn2.running_var) {training = mode, momentum = 0.1, eps = 1e-05, cudnn_enabled = true}: f32[N, $trunk, 4, 4]
  %conv2d_2 = aten.conv2d(%x, @shortcut.weight, @shortcut.bias) {stride = [2, 2]}: f32[N, $trunk, 4, 4]
  %add = aten.add.Tensor(%batch_norm_1, %conv2d_2): f32[N, $trunk, 4, 4]
  %relu_1 = aten.relu(%add): f32[N, $trunk, 4, 4]
  return %relu_1
}
