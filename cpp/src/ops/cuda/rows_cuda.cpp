// The row-wise operators on CUDA: tensors to parameters, a launch each.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <tuple>

#include "ops/cuda/device_info.h"
#include "ops/cuda/host.h"
#include "ops/cuda/plan.h"
#include "ops/cuda/rows_params.h"
#include "ops/meta.h"

namespace tabes::ops {
namespace {

gpu::NormParams norm_params(const at::Tensor& x, const at::Tensor& weight, at::Tensor& out,
                            double eps) {
  gpu::NormParams p{};
  p.x = x.const_data_ptr();
  p.stride = x.stride(0);
  p.rows = x.size(0);
  p.width = static_cast<int>(x.size(1));
  p.weight = weight.const_data_ptr<float>();
  p.out = out.data_ptr();
  p.eps = static_cast<float>(eps);
  return p;
}

at::Tensor rms_norm_cuda(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const c10::DeviceGuard guard(x.device());
  const gpu::Number number = number_of(x, "rms_norm");
  at::Tensor y = rms_norm_meta(x, weight, eps);
  if (y.numel() == 0) return y;
  const gpu::NormParams p = norm_params(x, weight, y, eps);
  check_launch(gpu::launch_rms_norm(p, number, current_stream()), "rms_norm");
  return y;
}

at::Tensor rms_norm_backward_cuda(const at::Tensor& grad, const at::Tensor& x,
                                  const at::Tensor& weight, double eps) {
  const c10::DeviceGuard guard(x.device());
  const gpu::Number number = number_of(x, "rms_norm_backward");
  at::Tensor dx = rms_norm_backward_meta(grad, x, weight, eps);
  if (dx.numel() == 0) return dx;
  gpu::NormParams p = norm_params(x, weight, dx, eps);
  p.grad = grad.const_data_ptr();
  check_launch(gpu::launch_rms_norm_backward(p, number, current_stream()), "rms_norm_backward");
  return dx;
}

void rope_cuda(const at::Tensor& x, int64_t heads, const at::Tensor& cos, const at::Tensor& sin,
               const at::Tensor& positions, bool inverse) {
  const c10::DeviceGuard guard(x.device());
  const gpu::Number number = number_of(x, "rope_");
  rope_meta(x, heads, cos, sin, positions, inverse);
  if (x.size(0) * heads * cos.size(1) == 0) return;
  gpu::RopeParams p{};
  p.x = x.data_ptr();
  p.stride = x.stride(0);
  p.rows = x.size(0);
  p.heads = static_cast<int>(heads);
  p.half = static_cast<int>(cos.size(1));
  p.cos = cos.const_data_ptr<float>();
  p.sin = sin.const_data_ptr<float>();
  p.table = cos.size(0);
  p.positions = positions.const_data_ptr<int64_t>();
  p.inverse = inverse;
  check_launch(gpu::launch_rope(p, number, current_stream()), "rope_");
}

gpu::GatedParams gated_params(const at::Tensor& x, at::Tensor& out, c10::string_view act) {
  gpu::GatedParams p{};
  p.x = x.const_data_ptr();
  p.out = out.data_ptr();
  p.rows = x.size(0);
  p.width = x.size(1) / 2;
  p.gelu = gate_named(act) == cpu::Gate::gelu;
  return p;
}

at::Tensor gated_cuda(const at::Tensor& x, c10::string_view act) {
  const c10::DeviceGuard guard(x.device());
  const gpu::Number number = number_of(x, "gated");
  at::Tensor y = gated_meta(x, act);
  if (y.numel() == 0) return y;
  check_launch(gpu::launch_gated(gated_params(x, y, act), number, current_stream()), "gated");
  return y;
}

at::Tensor gated_backward_cuda(const at::Tensor& grad, const at::Tensor& x, c10::string_view act) {
  const c10::DeviceGuard guard(x.device());
  const gpu::Number number = number_of(x, "gated_backward");
  at::Tensor dx = gated_backward_meta(grad, x, act);
  if (dx.numel() == 0) return dx;
  gpu::GatedParams p = gated_params(x, dx, act);
  p.grad = grad.const_data_ptr();
  check_launch(gpu::launch_gated_backward(p, number, current_stream()), "gated_backward");
  return dx;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> row_statistics_cuda(
    const at::Tensor& logits) {
  const c10::DeviceGuard guard(logits.device());
  const gpu::Number number = number_of(logits, "row_statistics");
  auto result = row_statistics_meta(logits);
  auto& [lse, entropy, max_prob, margin, argmax] = result;
  if (logits.size(0) == 0) return result;
  gpu::StatisticsParams p{};
  p.logits = logits.const_data_ptr();
  p.rows = logits.size(0);
  p.vocab = logits.size(1);
  p.splits = gpu::row_splits(p.rows, p.vocab, gpu::multiprocessors());
  at::Tensor parts;
  if (p.splits > 1) {
    const int64_t bytes = p.rows * p.splits * static_cast<int64_t>(sizeof(gpu::LogitPartial));
    parts = at::empty({bytes}, logits.options().dtype(at::kByte));
    p.parts = static_cast<gpu::LogitPartial*>(parts.data_ptr());
  }
  p.lse = lse.data_ptr<float>();
  p.entropy = entropy.data_ptr<float>();
  p.max_prob = max_prob.data_ptr<float>();
  p.margin = margin.data_ptr<float>();
  p.argmax = argmax.data_ptr<int64_t>();
  check_launch(gpu::launch_statistics(p, number, current_stream()), "row_statistics");
  return result;
}

void entropy_adjoint_cuda(const at::Tensor& logits, const at::Tensor& argmax,
                          const at::Tensor& max_prob, const at::Tensor& entropy,
                          const at::Tensor& weight) {
  const c10::DeviceGuard guard(logits.device());
  const gpu::Number number = number_of(logits, "entropy_adjoint_");
  entropy_adjoint_meta(logits, argmax, max_prob, entropy, weight);
  if (logits.numel() == 0) return;
  at::Tensor top = at::empty_like(max_prob);
  gpu::EntropyParams p{};
  p.logits = logits.data_ptr();
  p.rows = logits.size(0);
  p.vocab = logits.size(1);
  p.argmax = argmax.const_data_ptr<int64_t>();
  p.max_prob = max_prob.const_data_ptr<float>();
  p.entropy = entropy.const_data_ptr<float>();
  p.weight = weight.const_data_ptr<float>();
  p.top = top.data_ptr<float>();
  check_launch(gpu::launch_entropy_adjoint(p, number, current_stream()), "entropy_adjoint_");
}

at::Tensor sample_rows_cuda(const at::Tensor& logits, const at::Tensor& uniforms,
                            double temperature, int64_t top_k, double top_p) {
  const c10::DeviceGuard guard(logits.device());
  const gpu::Number number = number_of(logits, "sample_rows");
  at::Tensor tokens = sample_rows_meta(logits, uniforms, temperature, top_k, top_p);
  if (tokens.numel() == 0) return tokens;
  gpu::SampleParams p{};
  p.logits = logits.const_data_ptr();
  p.uniforms = uniforms.const_data_ptr<double>();
  p.tokens = tokens.data_ptr<int64_t>();
  p.rows = logits.size(0);
  p.vocab = logits.size(1);
  p.inverse_temperature = inverse_temperature<float>(temperature);
  p.top_k = top_k;
  p.top_p = top_p;
  check_launch(gpu::launch_sample(p, number, current_stream()), "sample_rows");
  return tokens;
}

at::Tensor counter_uniforms_cuda(const at::Tensor& sequences, const at::Tensor& positions,
                                 const at::Tensor& steps, int64_t seed, int64_t stream) {
  const c10::DeviceGuard guard(positions.device());
  at::Tensor result = counter_uniforms_meta(sequences, positions, steps, seed, stream);
  if (result.numel() == 0) return result;
  gpu::UniformParams p{};
  p.seed = static_cast<uint64_t>(seed);
  p.stream = static_cast<uint32_t>(stream);
  p.sequences = sequences.const_data_ptr<int64_t>();
  p.positions = positions.const_data_ptr<int64_t>();
  p.steps = steps.const_data_ptr<int64_t>();
  p.count = result.numel();
  p.out = result.data_ptr<double>();
  check_launch(gpu::launch_uniforms(p, current_stream()), "counter_uniforms");
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(tabes, CUDA, m) {
  m.impl("rms_norm", rms_norm_cuda);
  m.impl("rms_norm_backward", rms_norm_backward_cuda);
  m.impl("rope_", rope_cuda);
  m.impl("gated", gated_cuda);
  m.impl("gated_backward", gated_backward_cuda);
  m.impl("row_statistics", row_statistics_cuda);
  m.impl("entropy_adjoint_", entropy_adjoint_cuda);
  m.impl("sample_rows", sample_rows_cuda);
  m.impl("counter_uniforms", counter_uniforms_cuda);
}

}  // namespace tabes::ops
