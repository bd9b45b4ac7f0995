#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/call.h"
#include "ops/meta.h"
#include "ops/ops.h"

namespace tabes::ops {

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

at::Tensor gated_backward_meta(const at::Tensor& grad, const at::Tensor& x, c10::string_view act) {
  gated_meta(x, act);
  TORCH_CHECK(grad.dim() == 2 && grad.is_contiguous() && grad.size(0) == x.size(0) &&
                  2 * grad.size(1) == x.size(1) && grad.scalar_type() == x.scalar_type(),
              "gated_backward: grad must be contiguous [R, F] for x ", x.sizes(), "; got ",
              grad.sizes());
  return at::empty_like(x);
}

namespace {

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

at::Tensor gated_backward_cpu(const at::Tensor& grad, const at::Tensor& x, c10::string_view act) {
  at::Tensor dx = gated_backward_meta(grad, x, act);
  const int64_t n = grad.size(1);
  if (dx.numel() == 0) return dx;
  TABES_DISPATCH(x.scalar_type(), "gated_backward", [&] {
    const scalar_t* dy = grad.const_data_ptr<scalar_t>();
    const scalar_t* in = x.const_data_ptr<scalar_t>();
    scalar_t* out = dx.data_ptr<scalar_t>();
    at::parallel_for(0, x.size(0), std::max<int64_t>(1, 16384 / n), [&](int64_t from, int64_t to) {
      cpu::kernels<scalar_t>().gated_backward(dy + from * n, in + from * 2 * n, out + from * 2 * n,
                                              to - from, n, gate_named(act));
    });
  });
  return dx;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tabes, m) {
  m.def("gated(Tensor x, str act) -> Tensor");
  m.def("gated_backward(Tensor grad, Tensor x, str act) -> Tensor");
}
TORCH_LIBRARY_IMPL(tabes, CPU, m) {
  m.impl("gated", gated_cpu);
  m.impl("gated_backward", gated_backward_cpu);
}
TORCH_LIBRARY_IMPL(tabes, Meta, m) {
  m.impl("gated", gated_meta);
  m.impl("gated_backward", gated_backward_meta);
}

at::Tensor gated(const at::Tensor& x, const std::string& act) {
  static auto op = find_op<decltype(gated_cpu)>("tabes::gated");
  return op.call(x, act);
}

at::Tensor gated_backward(const at::Tensor& grad, const at::Tensor& x, const std::string& act) {
  static auto op = find_op<decltype(gated_backward_cpu)>("tabes::gated_backward");
  return op.call(grad, x, act);
}

}  // namespace tabes::ops
