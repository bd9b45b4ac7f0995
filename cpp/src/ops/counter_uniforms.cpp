#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/call.h"
#include "ops/meta.h"
#include "ops/ops.h"
#include "random/philox.h"

namespace tabes::ops {

at::Tensor counter_uniforms_meta(const at::Tensor& sequences, const at::Tensor& positions,
                                 const at::Tensor& steps, int64_t, int64_t) {
  for (const at::Tensor* t : {&sequences, &positions, &steps}) {
    TORCH_CHECK(t->dim() == 1 && t->is_contiguous() && t->scalar_type() == at::kLong &&
                    t->size(0) == positions.size(0),
                "counter_uniforms: sequences, positions and steps must be contiguous [n] int64; ",
                "got ", t->sizes());
  }
  return at::empty(positions.sizes(), positions.options().dtype(at::kDouble));
}

namespace {

at::Tensor counter_uniforms_cpu(const at::Tensor& sequences, const at::Tensor& positions,
                                const at::Tensor& steps, int64_t seed, int64_t stream) {
  at::Tensor result = counter_uniforms_meta(sequences, positions, steps, seed, stream);
  const int64_t *b = sequences.const_data_ptr<int64_t>(), *i = positions.const_data_ptr<int64_t>(),
                *t = steps.const_data_ptr<int64_t>();
  double* out = result.data_ptr<double>();
  at::parallel_for(0, result.numel(), 4096, [&](int64_t from, int64_t to) {
    for (int64_t k = from; k < to; ++k) {
      out[k] = counter_uniform(static_cast<uint64_t>(seed), static_cast<Stream>(stream), b[k], i[k],
                               t[k]);
    }
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tabes, m) {
  m.def(
      "counter_uniforms(Tensor sequences, Tensor positions, Tensor steps, int seed, int stream) "
      "-> Tensor");
}
TORCH_LIBRARY_IMPL(tabes, CPU, m) {
  m.impl("counter_uniforms", counter_uniforms_cpu);
}
TORCH_LIBRARY_IMPL(tabes, Meta, m) {
  m.impl("counter_uniforms", counter_uniforms_meta);
}

at::Tensor counter_uniforms(const at::Tensor& sequences, const at::Tensor& positions,
                            const at::Tensor& steps, uint64_t seed, Stream stream) {
  static auto op = find_op<decltype(counter_uniforms_cpu)>("tabes::counter_uniforms");
  return op.call(sequences, positions, steps, static_cast<int64_t>(seed),
                 static_cast<int64_t>(stream));
}

}  // namespace tabes::ops
