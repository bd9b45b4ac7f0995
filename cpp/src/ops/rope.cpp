#include <ATen/Parallel.h>
#include <torch/library.h>

#include "ops/call.h"
#include "ops/meta.h"
#include "ops/ops.h"

namespace tabes::ops {

void rope_meta(const at::Tensor& x, int64_t heads, const at::Tensor& cos, const at::Tensor& sin,
               const at::Tensor& positions, bool) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1 && cos.dim() == 2 && cos.is_contiguous() &&
                  sin.is_contiguous() && sin.sizes() == cos.sizes() && positions.dim() == 1 &&
                  positions.is_contiguous() && positions.scalar_type() == at::kLong &&
                  positions.size(0) == x.size(0),
              "rope_: x must be [R, C] with contiguous rows, cos and sin [P, half], positions [R] ",
              "int64; got ", x.sizes(), ", ", cos.sizes(), " and ", positions.sizes());
  TORCH_CHECK(heads >= 0 && heads * 2 * cos.size(1) <= x.size(1), "rope_: ", heads, " heads of ",
              2 * cos.size(1), " do not fit a row of ", x.size(1));
  const auto type = accumulate_type(x.scalar_type());
  TORCH_CHECK(cos.scalar_type() == type && sin.scalar_type() == type, "rope_: cos and sin must be ",
              type, " for x of ", x.scalar_type());
}

namespace {

void rope_cpu(const at::Tensor& x, int64_t heads, const at::Tensor& cos, const at::Tensor& sin,
              const at::Tensor& positions, bool inverse) {
  rope_meta(x, heads, cos, sin, positions, inverse);
  const int64_t half = cos.size(1);
  const int64_t* position = positions.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < x.size(0); ++i) {
    TORCH_CHECK_INDEX(position[i] >= 0 && position[i] < cos.size(0), "rope_: position ",
                      position[i], " of row ", i, " is outside the table of ", cos.size(0));
  }
  TABES_DISPATCH(x.scalar_type(), "rope_", [&] {
    using A = cpu::Accumulate<scalar_t>;
    scalar_t* data = x.data_ptr<scalar_t>();
    at::parallel_for(
        0, x.size(0), std::max<int64_t>(1, 65536 / x.size(1)), [&](int64_t from, int64_t to) {
          cpu::kernels<scalar_t>().rope(data + from * x.stride(0), x.stride(0), heads, half,
                                        cos.const_data_ptr<A>(), sin.const_data_ptr<A>(),
                                        position + from, to - from, inverse);
        });
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tabes, m) {
  m.def(
      "rope_(Tensor(a!) x, int heads, Tensor cos, Tensor sin, Tensor positions, "
      "bool inverse=False) -> ()");
}
TORCH_LIBRARY_IMPL(tabes, CPU, m) {
  m.impl("rope_", rope_cpu);
}
TORCH_LIBRARY_IMPL(tabes, Meta, m) {
  m.impl("rope_", rope_meta);
}

void rope_(const at::Tensor& x, int64_t heads, const at::Tensor& cos, const at::Tensor& sin,
           const at::Tensor& positions, bool inverse) {
  static auto op = find_op<decltype(rope_)>("tabes::rope_");
  op.call(x, heads, cos, sin, positions, inverse);
}

}  // namespace tabes::ops
