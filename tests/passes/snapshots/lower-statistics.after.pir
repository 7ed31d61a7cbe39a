graph @Norms_statistics(%x: f32[N, 3, 8, 8]) {
  param @a.weight: f32[4, 3, 3, 3]
  param @bn1.weight: f32[4]
  param @bn1.bias: f32[4]
  param @b.weight: f32[4, 4, 3, 3]
  param @b.bias: f32[4]

  %a, %mean, %variance, %x_finished = pruneopt.conv_statistics(%x, none, none, none, none, none, @a.weight) {activation = "identity", stride = [1, 1], padding = [1, 1], dilation = [1, 1], groups = 1}: f32[N, 4, 8, 8], f32[4], f32[4], f32[N, 3, 8, 8]
  %scale, %shift = pruneopt.norm_affine(%mean, %variance, @bn1.weight, @bn1.bias) {eps = 1e-05}: f32[4], f32[4]
  %relu = pruneopt.add_act(%a, %scale, %shift) {activation = "relu"}: f32[N, 4, 8, 8]
  %b = aten.conv2d(%relu, @b.weight, @b.bias) {padding = [1, 1]}: f32[N, 4, 8, 8]
  %mean_1, %variance_1 = pruneopt.statistics(%b): f32[4], f32[4]
  return (%mean, %variance, %mean_1, %variance_1)
}
