graph @Lowered(%x: f32[N, 4, 8, 8]) {
  param @a.weight: f32[8, 4, 3, 3]
  param @a.bias: f32[8]
  param @depthwise.weight: f32[8, 1, 3, 3]
  param @depthwise.bias: f32[8]
  param @b.weight: f32[4, 8, 1, 1]
  param @b.bias: f32[4]
  param @head.weight: f32[5, 4]
  param @head.bias: f32[5]

  %a = aten.conv2d(%x, @a.weight, @a.bias) {padding = [1, 1]}: f32[N, 8, 8, 8]
  %relu6 = aten.hardtanh(%a) {min_val = 0, max_val = 6}: f32[N, 8, 8, 8]
  %depthwise = aten.conv2d(%relu6, @depthwise.weight, @depthwise.bias) {padding = [1, 1], groups = 8}: f32[N, 8, 8, 8]
  %b = aten.conv2d(%depthwise, @b.weight, @b.bias): f32[N, 4, 8, 8]
  %sum = aten.add.Tensor(%b, %x): f32[N, 4, 8, 8]
  %relu = aten.relu(%sum): f32[N, 4, 8, 8]
  %cut = aten.slice.Tensor(%relu) {dim = 2, start = 1, end = 7}: f32[N, 4, 6, 8]
  %pool = aten.adaptive_avg_pool2d(%cut) {output_size = [1, 1]}: f32[N, 4, 1, 1]
  %flat = aten.reshape(%pool) {shape = [N, 4]}: f32[N, 4]
  %head = aten.linear(%flat, @head.weight, @head.bias): f32[N, 5]
  return %head
}
