#include <ATen/Parallel.h>
#include <torch/library.h>

#include "ops/call.h"
#include "ops/meta.h"
#include "ops/ops.h"

namespace tabes::ops {

void entropy_adjoint_meta(const at::Tensor& logits, const at::Tensor& argmax,
                          const at::Tensor& max_prob, const at::Tensor& entropy,
                          const at::Tensor& weight) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(),
              "entropy_adjoint_: logits must be contiguous [n, V]; got ", logits.sizes());
  const auto check = [&](const at::Tensor& t, at::ScalarType type, const char* name) {
    TORCH_CHECK(
        t.dim() == 1 && t.is_contiguous() && t.size(0) == logits.size(0) && t.scalar_type() == type,
        "entropy_adjoint_: ", name, " must be [n] ", type, "; got ", t.sizes(), " ",
        t.scalar_type());
  };
  const at::ScalarType real = accumulate_type(logits.scalar_type());
  check(argmax, at::kLong, "argmax");
  check(max_prob, real, "max_prob");
  check(entropy, real, "entropy");
  check(weight, real, "weight");
}

namespace {

void entropy_adjoint_cpu(const at::Tensor& logits, const at::Tensor& argmax,
                         const at::Tensor& max_prob, const at::Tensor& entropy,
                         const at::Tensor& weight) {
  entropy_adjoint_meta(logits, argmax, max_prob, entropy, weight);
  const int64_t n = logits.size(1);
  if (logits.numel() == 0) return;
  const int64_t* top = argmax.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < logits.size(0); ++i) {
    TORCH_CHECK_INDEX(top[i] >= 0 && top[i] < n, "entropy_adjoint_: argmax ", top[i], " of row ", i,
                      " is outside the ", n, " logits");
  }
  TABES_DISPATCH(logits.scalar_type(), "entropy_adjoint_", [&] {
    using A = cpu::Accumulate<scalar_t>;
    scalar_t* x = logits.data_ptr<scalar_t>();
    const A *p = max_prob.const_data_ptr<A>(), *h = entropy.const_data_ptr<A>(),
            *w = weight.const_data_ptr<A>();
    at::parallel_for(
        0, logits.size(0), std::max<int64_t>(1, 16384 / n), [&](int64_t from, int64_t to) {
          for (int64_t i = from; i < to; ++i) {
            cpu::kernels<scalar_t>().entropy_adjoint(x + i * n, top[i], p[i], h[i], w[i], n);
          }
        });
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tabes, m) {
  m.def(
      "entropy_adjoint_(Tensor(a!) logits, Tensor argmax, Tensor max_prob, Tensor entropy, "
      "Tensor weight) -> ()");
}
TORCH_LIBRARY_IMPL(tabes, CPU, m) {
  m.impl("entropy_adjoint_", entropy_adjoint_cpu);
}
TORCH_LIBRARY_IMPL(tabes, Meta, m) {
  m.impl("entropy_adjoint_", entropy_adjoint_meta);
}

void entropy_adjoint_(const at::Tensor& logits, const at::Tensor& argmax,
                      const at::Tensor& max_prob, const at::Tensor& entropy,
                      const at::Tensor& weight) {
  static auto op = find_op<decltype(entropy_adjoint_)>("tabes::entropy_adjoint_");
  op.call(logits, argmax, max_prob, entropy, weight);
}

}  // namespace tabes::ops
