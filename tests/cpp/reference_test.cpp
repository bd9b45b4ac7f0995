// The native transformer, its adjoint and its influence scores against the same model written in
// ATen's own operators and differentiated by autograd, for every kind of description.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <map>
#include <utility>

#include "random_models.h"
#include "tabes/influence.h"

namespace tabes {
namespace {

// One sequence at a time; attention outputs of rows outside `active` are constants to autograd,
// which is the definition of ActiveQueryAttention.
class Plain {
 public:
  Plain(const TransformerConfig& config, std::map<std::string, at::Tensor> weights)
      : c_(config), w_(std::move(weights)) {}

  at::Tensor table() const { return w_.at("embed.tokens"); }

  // Logits [L, V] that predict each position of x [L, D].
  at::Tensor logits(at::Tensor x, const at::Tensor& active) const {
    const int64_t length = x.size(0);
    if (c_.positions == Positions::learned) x = x + w_.at("embed.positions").narrow(0, 0, length);
    if (c_.token_types > 0) x = x + w_.at("embed.types")[0];
    if (c_.embedding_norm) x = norm(x, "embed.norm");
    const bool pre = c_.norm_placement == NormPlacement::pre;
    for (int64_t i = 0; i < c_.num_layers; ++i) {
      const std::string at = "layers." + std::to_string(i) + ".";
      const auto own = [&](const at::Tensor& t, const char* name) { return norm(t, at + name); };
      x = x + linear(attention(pre ? own(x, "attn_norm") : x, at, active), at + "attn_out");
      if (!pre) x = own(x, "attn_norm");
      x = x + linear(mlp(pre ? own(x, "mlp_norm") : x, at), at + "down");
      if (!pre) x = own(x, "mlp_norm");
    }
    if (c_.final_norm) x = norm(x, "final_norm");
    const char* form = c_.mlp == Mlp::gelu_tanh ? "tanh" : "none";
    if (c_.head_transform) x = norm(at::gelu(linear(x, "head.dense"), form), "head.norm");
    at::Tensor y = at::matmul(x, (c_.head_tied ? table() : w_.at("head.out.weight")).t());
    if (c_.head_bias) y = y + w_.at("head.out.bias");
    if (!c_.logit_shift) return y;
    return y.index_select(0, at::clamp_min(at::arange(length) - 1, 0));
  }

 private:
  at::Tensor linear(const at::Tensor& x, const std::string& name) const {
    const auto bias = w_.find(name + ".bias");
    const at::Tensor y = at::matmul(x, w_.at(name + ".weight").t());
    return bias == w_.end() ? y : y + bias->second;
  }

  at::Tensor norm(const at::Tensor& x, const std::string& name) const {
    const at::Tensor& weight = w_.at(name + ".weight");
    if (c_.norm == Norm::layer) {
      return at::layer_norm(x, {x.size(-1)}, weight, w_.at(name + ".bias"), c_.norm_eps);
    }
    return x * at::rsqrt(x.square().mean(-1, true) + c_.norm_eps) * weight;
  }

  at::Tensor rotated(const at::Tensor& x) const {  // [H, L, d]
    if (c_.positions != Positions::rope) return x;
    const auto index = at::arange(0, c_.head_dim, 2, at::kDouble) / double(c_.head_dim);
    const at::Tensor angle = at::outer(at::arange(x.size(1), at::kDouble),
                                       at::pow(at::Scalar(c_.rope_theta), index).reciprocal());
    const auto half = x.chunk(2, -1);
    const at::Tensor cos = angle.cos(), sin = angle.sin();
    return at::cat({half[0] * cos - half[1] * sin, half[1] * cos + half[0] * sin}, -1);
  }

  at::Tensor attention(const at::Tensor& x, const std::string& at, const at::Tensor& active) const {
    const auto heads = [&](const char* name, int64_t count) {
      return linear(x, at + name).view({x.size(0), count, c_.head_dim}).transpose(0, 1);
    };
    at::Tensor q = heads("q", c_.num_heads), k = heads("k", c_.num_kv_heads);
    if (c_.qk_norm) q = norm(q, at + "q_norm"), k = norm(k, at + "k_norm");
    const int64_t repeat = c_.num_heads / c_.num_kv_heads;
    const at::Tensor keys = rotated(k).repeat_interleave(repeat, 0);
    const at::Tensor values = heads("v", c_.num_kv_heads).repeat_interleave(repeat, 0);
    const at::Tensor scores = at::matmul(rotated(q), keys.transpose(1, 2));
    const at::Tensor out = at::matmul((scores / std::sqrt(double(c_.head_dim))).softmax(-1), values)
                               .transpose(0, 1)
                               .reshape({x.size(0), c_.num_heads * c_.head_dim});
    return at::where(active.unsqueeze(1), out, out.detach());
  }

  at::Tensor mlp(const at::Tensor& x, const std::string& at) const {
    const at::Tensor up = linear(x, at + "up");
    if (c_.mlp == Mlp::swiglu) return at::silu(linear(x, at + "gate")) * up;
    if (c_.mlp == Mlp::geglu) return at::gelu(linear(x, at + "gate")) * up;
    return at::gelu(up, c_.mlp == Mlp::gelu_tanh ? "tanh" : "none");
  }

  TransformerConfig c_;
  std::map<std::string, at::Tensor> w_;
};

at::Tensor rows(const std::vector<int64_t>& positions) {
  return at::tensor(positions, at::kLong);
}

double relative(const at::Tensor& got, const at::Tensor& wanted) {
  return ((got - wanted).norm() / wanted.norm()).item<double>();
}

class ReferenceOf : public testing::TestWithParam<Kind> {
 protected:
  // The same draws whatever the dtype.
  std::shared_ptr<const Denoiser> build(at::ScalarType type) {
    at::manual_seed(11);
    weights = {};
    return make_transformer(GetParam().config, weights, at::kCPU, type);
  }

  // Token influence scores from their definition.
  at::Tensor tis(const Plain& plain, const at::Tensor& tokens, const std::vector<int64_t>& c,
                 const std::vector<int64_t>& p, const InfluenceOptions& o) const {
    const at::Tensor forbidden = rows({3, 7});
    const auto distribution = [&](const at::Tensor& logits) {
      return logits.index_fill(1, forbidden, -std::numeric_limits<double>::infinity())
          .log_softmax(1);
    };
    at::Tensor active = at::full({tokens.size(0)}, o.adjoint == AdjointKind::dense, at::kBool);
    for (const int64_t row : c) active[row] = true;
    for (const int64_t row : p) {
      active[row] = true;
      // A shifted model predicts a probe at the row before it, whose output must vary.
      if (GetParam().config.logit_shift && row > 0) active[row - 1] = true;
    }
    const at::Tensor x = plain.table().index_select(0, tokens);
    const at::Tensor soft = distribution(plain.logits(x, active).index_select(0, rows(c))).exp();
    const at::Tensor delta = at::matmul(soft, plain.table()) - plain.table()[3];
    at::Tensor total = at::zeros_like(delta);
    for (const double alpha : o.alpha) {
      const at::Tensor leaf =
          (x.index_select(0, rows(c)) + alpha * delta).detach().requires_grad_();
      const at::Tensor log_p = distribution(
          plain.logits(x.index_copy(0, rows(c), leaf), active).index_select(0, rows(p)));
      const at::Tensor phi = -(log_p.exp() * log_p.nan_to_num(0, 0, 0)).sum();
      total += torch::autograd::grad({phi}, {leaf})[0];
    }
    return -(total * delta).sum(1) / static_cast<double>(o.alpha.size());
  }

  RandomWeights weights;
};
INSTANTIATE_TEST_SUITE_P(Native, ReferenceOf, testing::ValuesIn(kinds()),
                         [](const auto& info) { return info.param.name; });

TEST_P(ReferenceOf, InfluenceIsAutogradsWithStoppedAttention) {
  at::manual_seed(3);
  std::vector<at::Tensor> sequences;
  for (const int64_t length : {11, 8}) sequences.push_back(at::randint(4, 23, {length}, at::kLong));
  const std::vector<std::vector<int64_t>> candidates{{5, 2}, {6}}, probes{{9, 0, 3}, {2, 1}};
  for (size_t b = 0; b < 2; ++b) {
    for (const auto& list : {candidates[b], probes[b]}) sequences[b].index_fill_(0, rows(list), 3);
  }
  const auto exact = build(at::kDouble), single = build(at::kFloat);
  const Plain plain(GetParam().config, weights.drawn);
  for (const AdjointKind adjoint : {AdjointKind::active, AdjointKind::dense}) {
    InfluenceOptions o;
    o.alpha = {0.25, 0.75};
    o.adjoint = adjoint;
    o.forbidden = {7};
    const Influence got = influence(*exact, sequences, candidates, probes, o);
    const Influence rounded = influence(*single, sequences, candidates, probes, o);
    for (size_t b = 0; b < 2; ++b) {
      const at::Tensor wanted = tis(plain, sequences[b], candidates[b], probes[b], o);
      EXPECT_LE(relative(got.tis[b], wanted), 1e-9);
      // Weights this large make sharp predictions, whose entropies float32 rounds to 1e-5 or so.
      EXPECT_LE(relative(rounded.tis[b], wanted), 1e-4);
    }
  }
}

}  // namespace
}  // namespace tabes
