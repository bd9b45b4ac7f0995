#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "ops/call.h"
#include "ops/meta.h"
#include "ops/ops.h"

namespace tabes::ops {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> row_statistics_meta(
    const at::Tensor& logits) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous() && logits.size(1) > 0,
              "row_statistics: logits must be contiguous [n, V] with V > 0; got ", logits.sizes());
  const auto real = logits.options().dtype(accumulate_type(logits.scalar_type()));
  const auto one = [&](const at::TensorOptions& options) {
    return at::empty({logits.size(0)}, options);
  };
  return {one(real), one(real), one(real), one(real), one(logits.options().dtype(at::kLong))};
}

namespace {

using Five = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Five row_statistics_cpu(const at::Tensor& logits) {
  Five result = row_statistics_meta(logits);
  auto& [lse, entropy, max_prob, margin, argmax] = result;
  const int64_t n = logits.size(1);
  TABES_DISPATCH(logits.scalar_type(), "row_statistics", [&] {
    using A = cpu::Accumulate<scalar_t>;
    const scalar_t* in = logits.const_data_ptr<scalar_t>();
    A *lse_p = lse.data_ptr<A>(), *entropy_p = entropy.data_ptr<A>(),
      *max_p = max_prob.data_ptr<A>(), *margin_p = margin.data_ptr<A>();
    int64_t* argmax_p = argmax.data_ptr<int64_t>();
    at::parallel_for(
        0, logits.size(0), std::max<int64_t>(1, 16384 / n), [&](int64_t from, int64_t to) {
          std::vector<cpu::RowStatistics<A>> rows(to - from);
          cpu::kernels<scalar_t>().statistics(in + from * n, to - from, n, rows.data());
          for (int64_t i = from; i < to; ++i) {
            const auto& s = rows[i - from];
            lse_p[i] = s.lse;
            entropy_p[i] = s.entropy;
            max_p[i] = s.max_prob;
            margin_p[i] = s.margin;
            argmax_p[i] = s.argmax;
          }
        });
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tabes, m) {
  m.def(
      "row_statistics(Tensor logits) -> (Tensor lse, Tensor entropy, Tensor max_prob, "
      "Tensor margin, Tensor argmax)");
}
TORCH_LIBRARY_IMPL(tabes, CPU, m) {
  m.impl("row_statistics", row_statistics_cpu);
}
TORCH_LIBRARY_IMPL(tabes, Meta, m) {
  m.impl("row_statistics", row_statistics_meta);
}

RowStatistics row_statistics(const at::Tensor& logits) {
  static auto op = find_op<decltype(row_statistics_cpu)>("tabes::row_statistics");
  auto [lse, entropy, max_prob, margin, argmax] = op.call(logits);
  return {lse, entropy, max_prob, margin, argmax};
}

}  // namespace tabes::ops
