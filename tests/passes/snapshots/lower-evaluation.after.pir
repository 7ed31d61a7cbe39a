graph @Lowered_evaluation(%x: f32[N, 4, 8, 8]) {
  param @a.weight: f32[8, 4, 3, 3]
  param @a.bias: f32[8]
  param @depthwise.weight: f32[8, 1, 3, 3]
  param @depthwise.bias: f32[8]
  param @b.weight: f32[4, 8, 1, 1]
  param @b.bias: f32[4]
  param @head.weight: f32[5, 4]
  param @head.bias: f32[5]

  %relu6 = pruneopt.conv_output(%x, @a.weight, @a.bias) {activation = "relu6", stride = [1, 1], padding = [1, 1], dilation = [1, 1], groups = 1}: f32[N, 8, 8, 8]
  %depthwise = pruneopt.conv_output(%relu6, @depthwise.weight, @depthwise.bias) {activation = "identity", stride = [1, 1], padding = [1, 1], dilation = [1, 1], groups = 8}: f32[N, 8, 8, 8]
  %relu = pruneopt.conv_output(%depthwise, @b.weight, @b.bias, %x) {activation = "relu", stride = [1, 1], padding = [0, 0], dilation = [1, 1], groups = 1}: f32[N, 4, 8, 8]
  %cut = aten.slice.Tensor(%relu) {dim = 2, start = 1, end = 7}: f32[N, 4, 6, 8]
  %pool = pruneopt.mean_pixels(%cut) {activation = "identity"}: f32[N, 4, 1, 1]
  %flat = aten.reshape(%pool) {shape = [N, 4]}: f32[N, 4]
  %head = aten.linear(%flat, @head.weight, @head.bias): f32[N, 5]
  return %head
}
