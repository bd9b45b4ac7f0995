#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/call.h"
#include "ops/ops.h"

namespace tabes::ops {
namespace {

cpu::Gate gate_named(c10::string_view act) {
  if (act == "silu") return cpu::Gate::silu;
  TORCH_CHECK(act == "gelu", "gated: act must be 'silu' or 'gelu', not '", act, "'");
  return cpu::Gate::gelu;
}

at::Tensor gated_meta(const at::Tensor& x, c10::string_view act) {
  gate_named(act);
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.size(1) % 2 == 0,
              "gated: x must be contiguous [R, 2F]; got ", x.sizes());
  return at::empty({x.size(0), x.size(1) / 2}, x.options());
}

at::Tensor gated_cpu(const at::Tensor& x, c10::string_view act) {
  at::Tensor y = gated_meta(x, act);
  const int64_t n = y.size(1);
  if (y.numel() == 0) return y;
  TABES_DISPATCH(x.scalar_type(), "gated", [&] {
    const scalar_t* in = x.const_data_ptr<scalar_t>();
    scalar_t* out = y.data_ptr<scalar_t>();
    at::parallel_for(0, x.size(0), std::max<int64_t>(1, 16384 / n), [&](int64_t from, int64_t to) {
      cpu::kernels<scalar_t>().gated(in + from * 2 * n, out + from * n, to - from, n,
                                     gate_named(act));
    });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tabes, m) {
  m.def("gated(Tensor x, str act) -> Tensor");
}
TORCH_LIBRARY_IMPL(tabes, CPU, m) {
  m.impl("gated", gated_cpu);
}
TORCH_LIBRARY_IMPL(tabes, Meta, m) {
  m.impl("gated", gated_meta);
}

at::Tensor gated(const at::Tensor& x, const std::string& act) {
  static auto op = find_op<decltype(gated_cpu)>("tabes::gated");
  return op.call(x, act);
}

}  // namespace tabes::ops
