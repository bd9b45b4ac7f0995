#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "ops/call.h"
#include "ops/meta.h"
#include "ops/ops.h"

namespace tabes::ops {

at::Tensor sample_rows_meta(const at::Tensor& logits, const at::Tensor& uniforms,
                            double temperature, int64_t top_k, double top_p) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous() && logits.size(1) > 0,
              "sample_rows: logits must be contiguous [n, V] with V > 0; got ", logits.sizes());
  TORCH_CHECK(uniforms.dim() == 1 && uniforms.is_contiguous() &&
                  uniforms.size(0) == logits.size(0) && uniforms.scalar_type() == at::kDouble,
              "sample_rows: uniforms must be [n] float64; got ", uniforms.sizes());
  TORCH_CHECK(temperature > 0 && top_k >= 0 && top_p > 0 && top_p <= 1,
              "sample_rows: needs temperature > 0, top_k >= 0 and top_p in (0, 1]");
  return at::empty({logits.size(0)}, logits.options().dtype(at::kLong));
}

namespace {

// The index at which the running sum of weight[order[0]], weight[order[1]], ... passes `target`;
// the last index of positive weight if rounding keeps the sum below it.
template <typename A, typename Order>
int64_t walk(const std::vector<A>& weight, int64_t count, double target, const Order& order) {
  double sum = 0;
  int64_t last = order(0);
  for (int64_t j = 0; j < count; ++j) {
    const int64_t v = order(j);
    if (!(weight[v] > 0)) continue;
    sum += weight[v];
    last = v;
    if (sum > target) break;
  }
  return last;
}

// Draws from weight[0..V) cut by top_k and top_p. Orders only as many tokens as the cuts reach.
template <typename A>
int64_t draw(const std::vector<A>& weight, double total, double u, int64_t top_k, double top_p,
             std::vector<int64_t>& heap) {
  const int64_t vocab = static_cast<int64_t>(weight.size());
  if (top_k == 0 && top_p >= 1.0) {
    return walk(weight, vocab, u * total, [](int64_t j) { return j; });
  }
  heap.resize(vocab);
  std::iota(heap.begin(), heap.end(), int64_t{0});
  const auto less = [&](int64_t a, int64_t b) {
    return weight[a] < weight[b] || (weight[a] == weight[b] && a > b);
  };
  std::make_heap(heap.begin(), heap.end(), less);
  const int64_t limit = top_k == 0 ? vocab : std::min(top_k, vocab);
  // pop_heap leaves the k-th largest at the k-th place from the end.
  int64_t kept = 0;
  if (top_k > 0) {
    total = 0;
    for (int64_t k = 0; k < limit; ++k) {
      std::pop_heap(heap.begin(), heap.end() - k, less);
      total += weight[heap[vocab - 1 - k]];
    }
  }
  double sum = 0;
  for (; kept < limit && (kept == 0 || sum < top_p * total); ++kept) {
    if (top_k == 0) std::pop_heap(heap.begin(), heap.end() - kept, less);
    sum += weight[heap[vocab - 1 - kept]];
  }
  return walk(weight, kept, u * sum, [&](int64_t j) { return heap[vocab - 1 - j]; });
}

at::Tensor sample_rows_cpu(const at::Tensor& logits, const at::Tensor& uniforms, double temperature,
                           int64_t top_k, double top_p) {
  at::Tensor tokens = sample_rows_meta(logits, uniforms, temperature, top_k, top_p);
  const int64_t vocab = logits.size(1);
  const double* u = uniforms.const_data_ptr<double>();
  int64_t* out = tokens.data_ptr<int64_t>();
  TABES_DISPATCH(logits.scalar_type(), "sample_rows", [&] {
    using A = cpu::Accumulate<scalar_t>;
    const scalar_t* in = logits.const_data_ptr<scalar_t>();
    at::parallel_for(0, logits.size(0), 1, [&](int64_t from, int64_t to) {
      std::vector<A> weight(vocab);
      std::vector<int64_t> heap;
      for (int64_t i = from; i < to; ++i) {
        const scalar_t* row = in + i * vocab;
        const A shift = static_cast<A>(*std::max_element(row, row + vocab));
        const double total = cpu::kernels<scalar_t>().exp_row(
            row, shift, inverse_temperature<A>(temperature), weight.data(), vocab);
        out[i] = draw(weight, total, u[i], top_k, top_p, heap);
      }
    });
  });
  return tokens;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tabes, m) {
  m.def(
      "sample_rows(Tensor logits, Tensor uniforms, float temperature, int top_k, float top_p) "
      "-> Tensor");
}
TORCH_LIBRARY_IMPL(tabes, CPU, m) {
  m.impl("sample_rows", sample_rows_cpu);
}
TORCH_LIBRARY_IMPL(tabes, Meta, m) {
  m.impl("sample_rows", sample_rows_meta);
}

at::Tensor sample_rows(const at::Tensor& logits, const at::Tensor& uniforms, double temperature,
                       int64_t top_k, double top_p) {
  static auto op = find_op<decltype(sample_rows)>("tabes::sample_rows");
  return op.call(logits, uniforms, temperature, top_k, top_p);
}

}  // namespace tabes::ops
