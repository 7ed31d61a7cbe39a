graph @Shuffle(%x: f32[N, 4, 4, 4]) {
  param @conv.weight: f32[2, 2, 1, 1]
  param @conv.bias: f32[2]

  %split_with_sizes_0, %split_with_sizes_1 = aten.split_with_sizes(%x) {split_sizes = [2, 2], dim = 1}: f32[N, 2, 4, 4], f32[N, 2, 4, 4]
  %conv2d = aten.conv2d(%split_with_sizes_1, @conv.weight, @conv.bias): f32[N, 2, 4, 4]
  %cat = aten.cat([%split_with_sizes_0, %conv2d]) {dim = 1}: f32[N, 4, 4, 4]
  %view = aten.reshape(%cat) {shape = [N, 2, 2, 4, 4]}: f32[N, 2, 2, 4, 4]
  %transpose = aten.transpose.int(%view) {dim0 = 1, dim1 = 2}: f32[N, 2, 2, 4, 4]
  %reshape = aten.reshape(%transpose) {shape = [N, 4, 4, 4]}: f32[N, 4, 4, 4]
  return %reshape
}
