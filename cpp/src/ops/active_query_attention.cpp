// ActiveQueryAttention (TABES, arXiv 2602.00250): attention whose forward is the ordinary one and
// whose adjoint treats the outputs of inactive queries as constants.
#include <ATen/TensorOperators.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "ops/call.h"
#include "ops/meta.h"
#include "ops/ops.h"

namespace tabes::ops {
namespace {

using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

void check_offsets(at::IntArrayRef cu, int64_t rows, size_t size, const char* name) {
  bool ok = cu.size() == size && size >= 1 && cu[0] == 0 && cu.back() == rows;
  for (size_t i = 1; ok && i < cu.size(); ++i) ok = cu[i] >= cu[i - 1];
  TORCH_CHECK(ok, "active_query_attention: ", name, " must be ", size, " offsets rising from 0 to ",
              rows, "; got ", cu);
}

// Row numbers of each sequence must lie in that sequence and rise.
void check_rows(const at::Tensor& rows, at::IntArrayRef cu, at::IntArrayRef cu_seqlens,
                const char* name) {
  TORCH_CHECK(rows.dim() == 1 && rows.scalar_type() == at::kLong && rows.is_contiguous(),
              "active_query_attention: ", name, " must be contiguous [n] int64");
  check_offsets(cu, rows.size(0), cu_seqlens.size(), "its offsets");
  if (!rows.is_cpu()) return;  // reading them would make the host wait
  const int64_t* row = rows.const_data_ptr<int64_t>();
  for (size_t b = 0; b + 1 < cu.size(); ++b) {
    for (int64_t i = cu[b]; i < cu[b + 1]; ++i) {
      const int64_t least = i == cu[b] ? cu_seqlens[b] : row[i - 1] + 1;
      TORCH_CHECK_INDEX(row[i] >= least && row[i] < cu_seqlens[b + 1],
                        "active_query_attention: ", name, "[", i, "] = ", row[i], " is not in [",
                        least, ", ", cu_seqlens[b + 1], ")");
    }
  }
}

void check_qkv(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
               const OptionalTensor& bias) {
  TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.dim() == 3,
              "active_query_attention: q, k and v must be [rows, heads, head_dim]");
  TORCH_CHECK(
      q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type() &&
          (q.scalar_type() == at::kFloat || q.scalar_type() == at::kDouble ||
           q.scalar_type() == at::kBFloat16 || (q.scalar_type() == at::kHalf && !q.is_cpu())),
      "active_query_attention: q, k and v must be float32, float64 or bfloat16 alike");
  TORCH_CHECK(!bias || bias->dim() == 2, "active_query_attention: bias must be [queries, keys]");
}

}  // namespace

at::Tensor active_query_attention_forward(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& v, const at::Tensor& active,
                                          at::IntArrayRef cu_active, at::IntArrayRef cu_seqlens,
                                          double scale, const OptionalTensor& bias) {
  check_qkv(q, k, v, bias);
  TORCH_CHECK(k.sizes() == v.sizes() && q.size(0) == k.size(0) && q.size(2) == k.size(2) &&
                  k.size(1) > 0 && q.size(1) % k.size(1) == 0,
              "active_query_attention: q [R, H, d] and k, v [R, Hkv, d] with H a multiple of Hkv; "
              "got ",
              q.sizes(), ", ", k.sizes(), " and ", v.sizes());
  check_offsets(cu_seqlens, q.size(0), cu_seqlens.size(), "cu_seqlens");
  check_rows(active, cu_active, cu_seqlens, "active");
  const std::vector<int64_t> cu = cu_seqlens.vec();
  return attention(q.contiguous(), k.contiguous(), v.contiguous(), cu, cu, scale, bias);
}

void check_active_query_attention_backward(
    const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& keys, at::IntArrayRef cu_keys, at::IntArrayRef cu_q, at::IntArrayRef cu_k,
    const OptionalTensor& bias, const OptionalTensor& queries, at::IntArrayRef cu_queries,
    const OptionalTensor& out, const OptionalTensor& lse) {
  check_qkv(q, k, v, bias);
  TORCH_CHECK(grad.dim() == 2 && grad.size(0) == q.size(0) &&
                  grad.size(1) == q.size(1) * q.size(2) && grad.scalar_type() == q.scalar_type(),
              "active_query_attention: grad must be [m, H * d] like q ", q.sizes(), "; got ",
              grad.sizes());
  check_offsets(cu_k, k.size(0), cu_k.size(), "cu_k");
  check_offsets(cu_q, q.size(0), cu_k.size(), "cu_q");
  check_rows(keys, cu_keys, cu_k, "keys");
  if (queries) check_rows(*queries, cu_queries, cu_q, "queries");
  TORCH_CHECK(
      out.has_value() == lse.has_value() &&
          (!out || (out->sizes() == grad.sizes() && lse->dim() == 2 && lse->size(0) == q.size(0) &&
                    lse->size(1) == q.size(1) && lse->scalar_type() == at::kFloat)),
      "active_query_attention: out [m, H * d] and lse [m, H] float32 come together");
}

namespace {

at::Tensor forward_meta(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor&, at::IntArrayRef, at::IntArrayRef, double,
                        const OptionalTensor& bias) {
  check_qkv(q, k, v, bias);
  return at::empty_symint({q.sym_size(0), q.sym_size(1) * q.sym_size(2)}, q.options());
}

// Columns `at` [n] of x [g, rows, length] -> [g, rows, n]. ATen's index_select along the last
// dimension took a fifth of the whole adjoint.
at::Tensor columns(const at::Tensor& x, const at::Tensor& at) {
  const int64_t n = at.numel(), length = x.size(2);
  at::Tensor out = at::empty({x.size(0), x.size(1), n}, x.options());
  const int64_t* index = at.const_data_ptr<int64_t>();
  TABES_DISPATCH(x.scalar_type(), "columns", [&] {
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = out.data_ptr<scalar_t>();
    for (int64_t row = 0; row < x.size(0) * x.size(1); ++row, from += length, to += n) {
      for (int64_t j = 0; j < n; ++j) to[j] = from[index[j]];
    }
  });
  return out;
}

// Heads are taken a few at a time, so that their scores stay in the second-level cache. On one
// core, with up to half of the rows active, this took 0.5 to 1.2 of the time of ATen's flash
// backward with gathered rows (with all rows 1.2 to 1.4); one product over all heads was up to four
// times slower.
constexpr int64_t kScoreBytes = 1 << 19;

Three backward_cpu(const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k,
                   const at::Tensor& v, const at::Tensor& keys, at::IntArrayRef cu_keys,
                   at::IntArrayRef cu_q, at::IntArrayRef cu_k, double scale,
                   const OptionalTensor& bias, const OptionalTensor& queries,
                   at::IntArrayRef cu_queries, const OptionalTensor& out,
                   const OptionalTensor& lse) {
  check_active_query_attention_backward(grad, q, k, v, keys, cu_keys, cu_q, cu_k, bias, queries,
                                        cu_queries, out, lse);
  if (q.scalar_type() == at::kBFloat16) {
    // PyTorch's bfloat16 products keep memory for every shape they meet.
    const auto wide = [](const at::Tensor& t) { return t.to(at::kFloat); };
    const auto narrow = [](const at::Tensor& t) { return t.to(at::kBFloat16); };
    const auto [dq, dk, dv] = backward_cpu(
        wide(grad), wide(q), wide(k), wide(v), keys, cu_keys, cu_q, cu_k, scale,
        bias ? OptionalTensor(wide(*bias)) : bias, queries, cu_queries, std::nullopt, std::nullopt);
    return {narrow(dq), narrow(dk), narrow(dv)};
  }
  const int64_t heads = q.size(1), groups = k.size(1), width = q.size(2);
  const int64_t repeat = heads / groups;
  at::Tensor dq = at::empty({queries ? queries->size(0) : q.size(0), heads, width}, q.options());
  at::Tensor dk = at::empty({keys.size(0), groups, width}, k.options()), dv = at::empty_like(dk);
  const at::Tensor gradients = grad.view(q.sizes());
  for (size_t b = 0; b + 1 < cu_k.size(); ++b) {
    const int64_t n = cu_q[b + 1] - cu_q[b], length = cu_k[b + 1] - cu_k[b];
    // [rows, heads, d] -> [Hkv, rows of its queries, d]: a group's queries share a key head.
    const auto stacked = [&](const at::Tensor& t) {
      return t.narrow(0, cu_q[b], n).transpose(0, 1).reshape({groups, repeat * n, width});
    };
    const auto own = [&](const at::Tensor& t) {
      return t.narrow(0, cu_k[b], length).transpose(0, 1);
    };
    const auto part = [](const at::Tensor& t, at::IntArrayRef cu, size_t i) {
      return t.narrow(0, cu[i], cu[i + 1] - cu[i]);
    };
    if (n == 0) {
      part(dk, cu_keys, b).zero_();
      part(dv, cu_keys, b).zero_();
      continue;
    }
    const at::Tensor query = stacked(q), down = stacked(gradients), key = own(k), value = own(v);
    const at::Tensor local = part(keys, cu_keys, b) - cu_k[b];
    const at::Tensor to_dk = part(dk, cu_keys, b).transpose(0, 1);
    const at::Tensor to_dv = part(dv, cu_keys, b).transpose(0, 1);
    at::Tensor rows, to_dq;
    if (queries) {
      rows = part(*queries, cu_queries, b) - cu_q[b];
      to_dq = part(dq, cu_queries, b);
    } else {
      to_dq = part(dq, cu_q, b);
    }
    const int64_t wanted = to_dq.size(0);
    const int64_t bytes = repeat * n * length * static_cast<int64_t>(q.element_size());
    const int64_t piece = std::clamp<int64_t>(kScoreBytes / bytes, 1, groups);
    at::Tensor p_all = at::empty({piece, repeat * n, length}, q.options());
    at::Tensor ds_all = at::empty_like(p_all);
    for (int64_t g = 0; g < groups; g += piece) {
      const int64_t count = std::min(piece, groups - g);
      at::Tensor p = p_all.narrow(0, 0, count), ds = ds_all.narrow(0, 0, count);
      const at::Tensor q_g = query.narrow(0, g, count), k_g = key.narrow(0, g, count);
      const at::Tensor down_g = down.narrow(0, g, count), v_g = value.narrow(0, g, count);
      at::baddbmm_out(p, p, q_g, k_g.transpose(1, 2), /*beta=*/0, scale);
      if (bias) {
        p.view({count, repeat, n, length}).add_(bias->narrow(0, cu_q[b], n).narrow(1, 0, length));
      }
      at::softmax_out(p, p, -1);
      at::bmm_out(ds, down_g, v_g.transpose(1, 2));
      to_dv.narrow(0, g, count).copy_(at::bmm(columns(p, local).transpose(1, 2), down_g));
      at::_softmax_backward_data_out(ds, ds, p, -1, p.scalar_type());
      at::Tensor d = at::bmm(columns(ds, local).transpose(1, 2), q_g);
      to_dk.narrow(0, g, count).copy_(d.mul_(scale));
      if (wanted == 0) continue;
      if (queries) {
        ds = ds.view({count, repeat, n, length})
                 .index_select(2, rows)
                 .view({count, repeat * wanted, length});
      }
      d = at::bmm(ds, k_g).mul_(scale);
      to_dq.narrow(1, g * repeat, count * repeat)
          .copy_(d.view({count * repeat, wanted, width}).transpose(0, 1));
    }
  }
  return {dq, dk, dv};
}

Three backward_meta(const at::Tensor&, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v, const at::Tensor& keys, at::IntArrayRef, at::IntArrayRef,
                    at::IntArrayRef, double, const OptionalTensor& bias,
                    const OptionalTensor& queries, at::IntArrayRef, const OptionalTensor&,
                    const OptionalTensor&) {
  check_qkv(q, k, v, bias);
  const auto like = [](const at::Tensor& t, const c10::SymInt& rows) {
    return at::empty_symint({rows, t.sym_size(1), t.sym_size(2)}, t.options());
  };
  return {like(q, queries ? queries->sym_size(0) : q.sym_size(0)), like(k, keys.sym_size(0)),
          like(v, keys.sym_size(0))};
}

at::Tensor call_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& active, at::IntArrayRef cu_active,
                        at::IntArrayRef cu_seqlens, double scale, const OptionalTensor& bias) {
  static auto op =
      find_op<decltype(active_query_attention_forward)>("tabes::active_query_attention");
  return op.call(q, k, v, active, cu_active, cu_seqlens, scale, bias);
}

Three call_backward(const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k,
                    const at::Tensor& v, const at::Tensor& keys, at::IntArrayRef cu_keys,
                    at::IntArrayRef cu_q, at::IntArrayRef cu_k, double scale,
                    const OptionalTensor& bias, const OptionalTensor& queries,
                    at::IntArrayRef cu_queries, const OptionalTensor& out,
                    const OptionalTensor& lse) {
  static auto op = find_op<decltype(backward_cpu)>("tabes::active_query_attention_backward");
  return op.call(grad, q, k, v, keys, cu_keys, cu_q, cu_k, scale, bias, queries, cu_queries, out,
                 lse);
}

// With the active rows gathered the adjoint works on them alone; the other rows' gradients are 0.
class Differentiable : public torch::autograd::Function<Differentiable> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q,
                            const at::Tensor& k, const at::Tensor& v, const at::Tensor& active,
                            at::IntArrayRef cu_active, at::IntArrayRef cu_seqlens, double scale,
                            const OptionalTensor& bias) {
    context->save_for_backward({q, k, v, active, bias ? *bias : at::Tensor()});
    context->saved_data["cu_active"] = cu_active.vec();
    context->saved_data["cu_seqlens"] = cu_seqlens.vec();
    context->saved_data["scale"] = scale;
    const at::AutoDispatchBelowADInplaceOrView below;
    return call_forward(q, k, v, active, cu_active, cu_seqlens, scale, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &active = saved[3];
    const auto cu_active = context->saved_data["cu_active"].toIntVector();
    const auto cu_seqlens = context->saved_data["cu_seqlens"].toIntVector();
    OptionalTensor bias;
    if (saved[4].defined()) bias = saved[4].index_select(0, active);
    const auto [dq, dk, dv] =
        call_backward(grads[0].index_select(0, active), q.index_select(0, active), k, v, active,
                      cu_active, cu_active, cu_seqlens, context->saved_data["scale"].toDouble(),
                      bias, std::nullopt, {}, std::nullopt, std::nullopt);
    const auto spread = [&](const at::Tensor& all, const at::Tensor& rows) {
      return at::zeros_like(all).index_copy(0, active, rows);
    };
    return {spread(q, dq), spread(k, dk), spread(v, dv), {}, {}, {}, {}, {}};
  }
};

at::Tensor forward_autograd(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& active, at::IntArrayRef cu_active,
                            at::IntArrayRef cu_seqlens, double scale, const OptionalTensor& bias) {
  return Differentiable::apply(q, k, v, active, cu_active, cu_seqlens, scale, bias);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tabes, m) {
  m.def(
      "active_query_attention(Tensor q, Tensor k, Tensor v, Tensor active, int[] cu_active, "
      "int[] cu_seqlens, float scale, Tensor? bias=None) -> Tensor");
  m.def(
      "active_query_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor keys, "
      "int[] cu_keys, int[] cu_q, int[] cu_k, float scale, Tensor? bias=None, "
      "Tensor? queries=None, int[] cu_queries=[], Tensor? out=None, Tensor? lse=None) "
      "-> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(tabes, CPU, m) {
  m.impl("active_query_attention", active_query_attention_forward);
  m.impl("active_query_attention_backward", backward_cpu);
}
TORCH_LIBRARY_IMPL(tabes, Meta, m) {
  m.impl("active_query_attention", forward_meta);
  m.impl("active_query_attention_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(tabes, Autograd, m) {
  m.impl("active_query_attention", forward_autograd);
}

AttentionGradient active_query_attention_backward(
    const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& keys, at::IntArrayRef cu_keys, at::IntArrayRef cu_q, at::IntArrayRef cu_k,
    double scale, const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& queries,
    at::IntArrayRef cu_queries, const std::optional<at::Tensor>& out,
    const std::optional<at::Tensor>& lse) {
  auto [dq, dk, dv] = call_backward(grad, q, k, v, keys, cu_keys, cu_q, cu_k, scale, bias, queries,
                                    cu_queries, out, lse);
  return {dq, dk, dv};
}

}  // namespace tabes::ops
