// ActiveQueryAttention on CUDA: which way its adjoint goes, and the way through our own kernels.
#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>

#include "messages.h"
#include "ops/cuda/aqa_call.h"
#include "ops/cuda/device_info.h"
#include "ops/cuda/host.h"
#include "ops/cuda/plan.h"
#include "ops/meta.h"

namespace tabes::ops {
namespace {

int64_t longest(at::IntArrayRef cu) {
  int64_t most = 0;
  for (size_t b = 0; b + 1 < cu.size(); ++b) most = std::max(most, cu[b + 1] - cu[b]);
  return most;
}

bool all_equal(at::IntArrayRef cu) {
  for (size_t b = 0; b + 1 < cu.size(); ++b) {
    if (cu[b + 1] - cu[b] != cu[1]) return false;
  }
  return true;
}

// Kernels copy 16 bytes at a time, so rows must start at multiples of that.
at::Tensor aligned(const at::Tensor& t) {
  const int64_t per_copy = 16 / static_cast<int64_t>(t.element_size());
  const bool dense = t.stride(-1) == 1 && (t.dim() == 2 || t.stride(1) == t.size(2));
  const bool ok = dense && t.stride(0) % per_copy == 0 &&
                  reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
  // Not contiguous(), which leaves a dense tensor where it is, however it starts.
  return ok ? t : t.clone(at::MemoryFormat::Contiguous);
}

// Overrides the choice, for benchmarks and for finding errors.
std::optional<gpu::Route> wanted_route() {
  const char* name = std::getenv("TABES_ATTENTION");
  if (!name || !*name) return std::nullopt;
  const auto route = gpu::route_named(name);
  if (!route) refuse("TABES_ATTENTION is '", name, "'; it may be own, flash or efficient");
  return route;
}

AqaResult backward_cuda(const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& v, const at::Tensor& keys, at::IntArrayRef cu_keys,
                        at::IntArrayRef cu_q, at::IntArrayRef cu_k, double scale,
                        const OptionalTensor& bias, const OptionalTensor& queries,
                        at::IntArrayRef cu_queries, const OptionalTensor& out,
                        const OptionalTensor& lse) {
  constexpr const char* kName = "active_query_attention_backward";
  check_active_query_attention_backward(grad, q, k, v, keys, cu_keys, cu_q, cu_k, bias, queries,
                                        cu_queries, out, lse);
  const c10::DeviceGuard guard(q.device());
  for (const at::Tensor* t : {&grad, &k, &v, &keys}) {
    if (t->device() != q.device()) {
      refuse(kName, ": arguments are on ", q.device(), " and on ", t->device(),
             "; move them to one device");
    }
  }
  if (q.size(0) == 0) {
    const auto none = [&](const at::Tensor& t, int64_t rows) {
      return at::zeros({rows, t.size(1), t.size(2)}, t.options());
    };
    return {none(q, 0), none(k, keys.size(0)), none(v, keys.size(0))};
  }
  gpu::AttentionSizes sizes{};
  sizes.number = number_of(q, kName);
  sizes.head_dim = q.size(2);
  sizes.batch = static_cast<int64_t>(cu_k.size()) - 1;
  sizes.queries = q.size(0);
  sizes.keys = k.size(0);
  sizes.equal_lengths = all_equal(cu_q) && all_equal(cu_k);
  sizes.bias = bias.has_value();
  sizes.kept = out.has_value();
  sizes.deterministic = at::globalContext().deterministicAlgorithms();
  const auto wanted = wanted_route();
  const auto route = gpu::choose_route(sizes, wanted);
  if (!route) {
    throw DeviceError(text(kName, ": no CUDA kernel for head size ", sizes.head_dim, " in ",
                           q.scalar_type(), wanted ? " by the route TABES_ATTENTION names" : "",
                           sizes.deterministic ? " with deterministic algorithms" : "",
                           "; tabes has its own for 32, 64, 96, 128 and 256"));
  }
  const AqaCall call{grad, q,     k,    v,       keys,       cu_keys, cu_q,
                     cu_k, scale, bias, queries, cu_queries, out,     lse};
  switch (*route) {
    case gpu::Route::flash:
      return flash_aqa_adjoint(call);
    case gpu::Route::efficient:
      return efficient_aqa_adjoint(call);
    default:
      return own_aqa_adjoint(call);
  }
}

}  // namespace

AqaResult own_aqa_adjoint(const AqaCall& c) {
  const int64_t m = c.q.size(0), heads = c.q.size(1), d = c.q.size(2), groups = c.k.size(1);
  const int64_t wanted = c.queries ? c.queries->size(0) : m, nk = c.keys.size(0);
  const gpu::Number number = number_of(c.q, "active_query_attention_backward");
  const int batch = static_cast<int>(c.cu_k.size()) - 1;
  const at::Tensor q = aligned(c.q), grad = aligned(c.grad), k = aligned(c.k), v = aligned(c.v);
  const at::Tensor offsets = offsets_on(
      q.device(), at::kLong, {c.cu_q, c.cu_k, c.cu_keys, c.queries ? c.cu_queries : c.cu_q});
  at::Tensor dq = at::empty({wanted, heads, d}, q.options());
  at::Tensor dk = at::empty({nk, groups, d}, k.options());
  at::Tensor dv = at::empty({nk, groups, d}, v.options());

  const gpu::AqaShape query = gpu::aqa_query_shape(number, static_cast<int>(d));
  const gpu::AqaShape key = gpu::aqa_key_shape(number, static_cast<int>(d));
  const at::IntArrayRef cu_dq = c.queries ? c.cu_queries : c.cu_q;
  const gpu::AqaGrid grid{gpu::aqa_tiles(c.cu_q.data(), batch, query.rows),
                          gpu::aqa_tiles(cu_dq.data(), batch, query.rows),
                          gpu::aqa_tiles(c.cu_keys.data(), batch, key.rows)};
  const auto steps = [](int64_t rows, int size) { return (rows + size - 1) / size; };
  const int64_t key_steps = steps(longest(c.cu_k), query.streamed);
  const int64_t query_steps = heads / groups * steps(longest(c.cu_q), key.streamed);
  const int processors = gpu::multiprocessors();

  gpu::AqaParams p{};
  p.row_splits = gpu::loop_splits(grid.query_tiles * heads, processors, key_steps);
  p.dq_splits = gpu::loop_splits(grid.dq_tiles * heads, processors, key_steps);
  p.key_splits = gpu::loop_splits(grid.key_tiles * groups, processors, query_steps);
  const auto room = [&](int64_t count) {
    return at::empty({count}, c.q.options().dtype(at::kFloat));
  };
  // Kept alive to the end of this call; the allocator hands their memory on in the stream's order.
  at::Tensor row_lse = c.lse ? c.lse->contiguous() : room(m * heads), row_delta = room(m * heads);
  at::Tensor row_parts, dq_parts, dk_parts, dv_parts, out, bias;
  if (!c.out && p.row_splits > 1) row_parts = room(p.row_splits * m * heads * 3);
  if (p.dq_splits > 1) dq_parts = room(p.dq_splits * dq.numel());
  if (p.key_splits > 1) {
    dk_parts = room(p.key_splits * dk.numel());
    dv_parts = room(p.key_splits * dv.numel());
  }
  const auto pointer = [](const at::Tensor& t) {
    return t.defined() ? t.data_ptr<float>() : nullptr;
  };
  p.q = q.const_data_ptr();
  p.grad = grad.const_data_ptr();
  p.k = k.const_data_ptr();
  p.v = v.const_data_ptr();
  p.q_stride = q.stride(0);
  p.grad_stride = grad.stride(0);
  p.k_stride = k.stride(0);
  p.v_stride = v.stride(0);
  if (c.out) {
    out = aligned(*c.out);
    p.out = out.const_data_ptr();
    p.out_stride = out.stride(0);
  }
  if (c.bias) {
    bias = c.bias->to(c.q.scalar_type());
    if (bias.stride(1) != 1) bias = bias.contiguous();
    p.bias = bias.const_data_ptr();
    p.bias_stride = bias.stride(0);
  }
  p.row_lse = row_lse.data_ptr<float>();
  p.row_delta = row_delta.data_ptr<float>();
  p.keys = c.keys.const_data_ptr<int64_t>();
  p.queries = c.queries ? c.queries->const_data_ptr<int64_t>() : nullptr;
  const int64_t* cu = offsets.const_data_ptr<int64_t>();
  const int64_t n = offsets.size(1);
  p.cu_q = cu;
  p.cu_k = cu + n;
  p.cu_keys = cu + 2 * n;
  p.cu_queries = cu + 3 * n;
  p.dq = dq.data_ptr();
  p.dk = dk.data_ptr();
  p.dv = dv.data_ptr();
  p.total_q = m;
  p.total_dq = wanted;
  p.total_keys = nk;
  p.row_parts = pointer(row_parts);
  p.dq_parts = pointer(dq_parts);
  p.dk_parts = pointer(dk_parts);
  p.dv_parts = pointer(dv_parts);
  p.batch = batch;
  p.heads = static_cast<int>(heads);
  p.groups = static_cast<int>(groups);
  p.scale = static_cast<float>(c.scale);
  check_launch(gpu::launch_aqa_adjoint(p, number, static_cast<int>(d), grid, current_stream()),
               "active_query_attention_backward");
  return {dq, dk, dv};
}

TORCH_LIBRARY_IMPL(tabes, CUDA, m) {
  m.impl("active_query_attention", active_query_attention_forward);
  m.impl("active_query_attention_backward", backward_cuda);
}

}  // namespace tabes::ops
