#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/call.h"
#include "ops/meta.h"
#include "ops/ops.h"

namespace tabes::ops {

at::Tensor rms_norm_meta(const at::Tensor& x, const at::Tensor& weight, double) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1 && weight.dim() == 1 && weight.is_contiguous() &&
                  weight.size(0) == x.size(1),
              "rms_norm: x must be [R, D] with contiguous rows and weight [D]; got ", x.sizes(),
              " and ", weight.sizes());
  TORCH_CHECK(weight.scalar_type() == accumulate_type(x.scalar_type()), "rms_norm: weight must be ",
              accumulate_type(x.scalar_type()), " for x of ", x.scalar_type());
  return at::empty({x.size(0), x.size(1)}, x.options());
}

at::Tensor rms_norm_backward_meta(const at::Tensor& grad, const at::Tensor& x,
                                  const at::Tensor& weight, double eps) {
  at::Tensor dx = rms_norm_meta(x, weight, eps);
  TORCH_CHECK(
      grad.is_contiguous() && grad.sizes() == x.sizes() && grad.scalar_type() == x.scalar_type(),
      "rms_norm_backward: grad must be contiguous and like x ", x.sizes(), "; got ", grad.sizes());
  return dx;
}

namespace {

at::Tensor rms_norm_cpu(const at::Tensor& x, const at::Tensor& weight, double eps) {
  at::Tensor y = rms_norm_meta(x, weight, eps);
  const int64_t n = x.size(1);
  if (y.numel() == 0) return y;
  TABES_DISPATCH(x.scalar_type(), "rms_norm", [&] {
    using A = cpu::Accumulate<scalar_t>;
    at::parallel_for(0, x.size(0), std::max<int64_t>(1, 65536 / n), [&](int64_t from, int64_t to) {
      cpu::kernels<scalar_t>().rms_norm(x.const_data_ptr<scalar_t>() + from * x.stride(0),
                                        x.stride(0), weight.const_data_ptr<A>(),
                                        y.data_ptr<scalar_t>() + from * n, to - from, n,
                                        static_cast<A>(eps));
    });
  });
  return y;
}

at::Tensor rms_norm_backward_cpu(const at::Tensor& grad, const at::Tensor& x,
                                 const at::Tensor& weight, double eps) {
  at::Tensor dx = rms_norm_backward_meta(grad, x, weight, eps);
  const int64_t n = x.size(1);
  if (dx.numel() == 0) return dx;
  TABES_DISPATCH(x.scalar_type(), "rms_norm_backward", [&] {
    using A = cpu::Accumulate<scalar_t>;
    at::parallel_for(0, x.size(0), std::max<int64_t>(1, 65536 / n), [&](int64_t from, int64_t to) {
      cpu::kernels<scalar_t>().rms_norm_backward(grad.const_data_ptr<scalar_t>() + from * n,
                                                 x.const_data_ptr<scalar_t>() + from * x.stride(0),
                                                 x.stride(0), weight.const_data_ptr<A>(),
                                                 dx.data_ptr<scalar_t>() + from * n, to - from, n,
                                                 static_cast<A>(eps));
    });
  });
  return dx;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tabes, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("rms_norm_backward(Tensor grad, Tensor x, Tensor weight, float eps) -> Tensor");
}
TORCH_LIBRARY_IMPL(tabes, CPU, m) {
  m.impl("rms_norm", rms_norm_cpu);
  m.impl("rms_norm_backward", rms_norm_backward_cpu);
}
TORCH_LIBRARY_IMPL(tabes, Meta, m) {
  m.impl("rms_norm", rms_norm_meta);
  m.impl("rms_norm_backward", rms_norm_backward_meta);
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  static auto op = find_op<decltype(rms_norm)>("tabes::rms_norm");
  return op.call(x, weight, eps);
}

at::Tensor rms_norm_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                             double eps) {
  static auto op = find_op<decltype(rms_norm_backward)>("tabes::rms_norm_backward");
  return op.call(grad, x, weight, eps);
}

}  // namespace tabes::ops
