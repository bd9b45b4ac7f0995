#include <ATen/Parallel.h>
#include <torch/library.h>

#include "ops/call.h"
#include "ops/ops.h"

namespace tabes::ops {
namespace {

void entropy_adjoint_meta(const at::Tensor& logits, const at::Tensor& lse,
                          const at::Tensor& entropy, const at::Tensor& weight) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(),
              "entropy_adjoint_: logits must be contiguous [n, V]; got ", logits.sizes());
  for (const at::Tensor& t : {lse, entropy, weight}) {
    TORCH_CHECK(t.dim() == 1 && t.is_contiguous() && t.size(0) == logits.size(0) &&
                    t.scalar_type() == accumulate_type(logits.scalar_type()),
                "entropy_adjoint_: lse, entropy and weight must be [n] ",
                accumulate_type(logits.scalar_type()), "; got ", t.sizes(), " ", t.scalar_type());
  }
}

void entropy_adjoint_cpu(const at::Tensor& logits, const at::Tensor& lse, const at::Tensor& entropy,
                         const at::Tensor& weight) {
  entropy_adjoint_meta(logits, lse, entropy, weight);
  const int64_t n = logits.size(1);
  if (logits.numel() == 0) return;
  TABES_DISPATCH(logits.scalar_type(), "entropy_adjoint_", [&] {
    using A = cpu::Accumulate<scalar_t>;
    scalar_t* x = logits.data_ptr<scalar_t>();
    const A *l = lse.const_data_ptr<A>(), *h = entropy.const_data_ptr<A>(),
            *w = weight.const_data_ptr<A>();
    at::parallel_for(0, logits.size(0), std::max<int64_t>(1, 16384 / n),
                     [&](int64_t from, int64_t to) {
                       for (int64_t i = from; i < to; ++i) {
                         cpu::kernels<scalar_t>().entropy_adjoint(x + i * n, l[i], h[i], w[i], n);
                       }
                     });
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tabes, m) {
  m.def(
      "entropy_adjoint_(Tensor(a!) logits, Tensor lse, Tensor entropy, Tensor weight) -> ()");
}
TORCH_LIBRARY_IMPL(tabes, CPU, m) {
  m.impl("entropy_adjoint_", entropy_adjoint_cpu);
}
TORCH_LIBRARY_IMPL(tabes, Meta, m) {
  m.impl("entropy_adjoint_", entropy_adjoint_meta);
}

void entropy_adjoint_(const at::Tensor& logits, const at::Tensor& lse, const at::Tensor& entropy,
                      const at::Tensor& weight) {
  static auto op = find_op<decltype(entropy_adjoint_)>("tabes::entropy_adjoint_");
  op.call(logits, lse, entropy, weight);
}

}  // namespace tabes::ops
