#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sin.h>

#include <sstream>
#include <utility>

#include "messages.h"
#include "model/device.h"
#include "model/precision.h"
#include "model/replayed_transformer.h"
#include "ops/call.h"
#include "plain_dispatch.h"
#include "tabes/error.h"

namespace tabes {
namespace {

void check(const TransformerConfig& c) {
  const auto positive = [&](int64_t value, const char* name) {
    if (value > 0) return;
    std::ostringstream out;
    out << "model description: " << name << " must be positive, not " << value;
    throw CheckpointError(out.str());
  };
  positive(c.vocab_size, "vocab_size");
  positive(c.hidden_size, "hidden_size");
  positive(c.num_layers, "num_layers");
  positive(c.num_heads, "num_heads");
  positive(c.num_kv_heads, "num_kv_heads");
  positive(c.head_dim, "head_dim");
  positive(c.mlp_size, "mlp_size");
  positive(c.max_length, "max_length");
  std::ostringstream out;
  if (c.num_heads % c.num_kv_heads != 0) {
    out << "model description: num_heads " << c.num_heads << " is not a multiple of num_kv_heads "
        << c.num_kv_heads;
  } else if (c.positions == Positions::rope && c.head_dim % 2 != 0) {
    out << "model description: rotary positions need an even head_dim, not " << c.head_dim;
  } else if (c.mask_token_id < 0 || c.mask_token_id >= c.vocab_size) {
    out << "model description: mask_token_id " << c.mask_token_id
        << " is outside the vocabulary of " << c.vocab_size;
  } else {
    return;
  }
  throw CheckpointError(out.str());
}

}  // namespace

class Transformer::Loader {
 public:
  Loader(const TransformerConfig& config, WeightSource& source, at::TensorOptions options,
         bool prepack)
      : config_(config), source_(source), options_(options), prepack_(prepack) {}

  at::Tensor tensor(const std::string& name, at::IntArrayRef shape) {
    at::Tensor t = at::empty(shape, options_);
    source_.read(name, t);
    parameters_ += t.numel();
    return t;
  }

  // Several linears stacked into one product; parts are (name, rows).
  Linear linear(const std::vector<std::pair<std::string, int64_t>>& parts, int64_t in, bool bias) {
    int64_t rows = 0;
    for (const auto& part : parts) rows += part.second;
    at::Tensor weight = at::empty({rows, in}, options_), offset;
    if (bias) offset = at::empty({rows}, options_);
    int64_t at = 0;
    for (const auto& [name, count] : parts) {
      source_.read(name + ".weight", weight.narrow(0, at, count));
      if (bias) source_.read(name + ".bias", offset.narrow(0, at, count));
      at += count;
    }
    parameters_ += weight.numel() + (bias ? offset.numel() : 0);
    return Linear(std::move(weight), std::move(offset), prepack_);
  }

  NormLayer norm(const std::string& name, int64_t size) {
    NormLayer n;
    n.kind = config_.norm;
    n.eps = config_.norm_eps;
    n.weight = tensor(name + ".weight", {size});
    if (n.kind == Norm::layer) {
      n.bias = tensor(name + ".bias", {size});
    } else {
      n.weight = n.weight.to(ops::accumulate_type(n.weight.scalar_type()));
    }
    return n;
  }

  int64_t parameters() const { return parameters_; }

 private:
  const TransformerConfig& config_;
  WeightSource& source_;
  at::TensorOptions options_;
  bool prepack_;
  int64_t parameters_ = 0;
};

Transformer::Transformer(const TransformerConfig& config, WeightSource& weights, at::Device device,
                         at::ScalarType dtype, bool prepack)
    : config_(config) {
  const TransformerConfig& c = config_;
  const at::TensorOptions options = at::TensorOptions().device(device).dtype(dtype);
  Loader load(c, weights, options, prepack);
  tokens_ = load.tensor("embed.tokens", {c.vocab_size, c.hidden_size});
  if (c.positions == Positions::learned) {
    positions_ = load.tensor("embed.positions", {c.max_length, c.hidden_size});
  } else {
    // Computed as the published models do, in float32, so that angles round as theirs did.
    const auto real = options.dtype(ops::accumulate_type(dtype));
    const at::Tensor exponent =
        at::arange(0, c.head_dim, 2, real) / static_cast<double>(c.head_dim);
    const at::Tensor angle = at::outer(at::arange(c.max_length, real),
                                       1.0 / at::pow(at::Scalar(c.rope_theta), exponent));
    cos_ = angle.cos();
    sin_ = angle.sin();
  }
  if (c.token_types > 0) {
    const at::Tensor type = load.tensor("embed.types", {c.token_types, c.hidden_size})[0];
    // Only type 0 occurs, so its row can be added to every position once.
    if (positions_.defined()) {
      positions_.add_(type);
    } else {
      tokens_.add_(type);
    }
  }
  if (c.embedding_norm) embed_norm_ = load.norm("embed.norm", c.hidden_size);
  const int64_t q_width = c.num_heads * c.head_dim, kv_width = c.num_kv_heads * c.head_dim;
  const bool is_gated = c.mlp == Mlp::swiglu || c.mlp == Mlp::geglu;
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string at = "layers." + std::to_string(i) + ".";
    Layer layer;
    layer.attn_norm = load.norm(at + "attn_norm", c.hidden_size);
    layer.qkv = load.linear({{at + "q", q_width}, {at + "k", kv_width}, {at + "v", kv_width}},
                            c.hidden_size, c.qkv_bias);
    if (c.qk_norm) {
      layer.q_norm = load.norm(at + "q_norm", c.head_dim);
      layer.k_norm = load.norm(at + "k_norm", c.head_dim);
    }
    layer.attn_out = load.linear({{at + "attn_out", c.hidden_size}}, q_width, c.attention_out_bias);
    layer.mlp_norm = load.norm(at + "mlp_norm", c.hidden_size);
    std::vector<std::pair<std::string, int64_t>> up{{at + "up", c.mlp_size}};
    if (is_gated) up.insert(up.begin(), {at + "gate", c.mlp_size});
    layer.up = load.linear(up, c.hidden_size, c.mlp_bias);
    layer.down = load.linear({{at + "down", c.hidden_size}}, c.mlp_size, c.mlp_bias);
    layers_.push_back(std::move(layer));
  }
  if (c.final_norm) final_norm_ = load.norm("final_norm", c.hidden_size);
  if (c.head_transform) {
    head_dense_ = load.linear({{"head.dense", c.hidden_size}}, c.hidden_size, true);
    head_norm_ = load.norm("head.norm", c.hidden_size);
  }
  if (c.head_tied) {
    at::Tensor bias;
    if (c.head_bias) bias = load.tensor("head.out.bias", {c.vocab_size});
    // The table is needed as it is, and once is enough.
    head_ = Linear(tokens_, std::move(bias), /*prepack=*/false);
  } else {
    head_ = load.linear({{"head.out", c.vocab_size}}, c.hidden_size, c.head_bias);
  }

  info_.family = c.family;
  info_.vocab_size = c.vocab_size;
  info_.hidden_size = c.hidden_size;
  info_.num_layers = c.num_layers;
  info_.max_length = c.max_length;
  info_.parameters = load.parameters();
  info_.mask_token_id = c.mask_token_id;
  info_.eos_token_ids = c.eos_token_ids;
  info_.bos_token_id = c.bos_token_id;
  info_.pad_token_id = c.pad_token_id;
  info_.special_token_ids = c.special_token_ids;
  info_.logit_shift = c.logit_shift;
  info_.device = tokens_.device();
  info_.dtype = dtype;
  if (recorder_for(info_.device.type())) {
    replay_ = std::make_shared<TransformerReplay>(info_.device);
  }
}

std::shared_ptr<const Denoiser> make_transformer(const TransformerConfig& config,
                                                 WeightSource& weights, at::Device device,
                                                 at::ScalarType dtype, bool prepack) {
  if (!is_model_type(dtype, device)) {
    throw DeviceError(text("dtype ", dtype, " is not supported on ", device,
                           "; use float32 or bfloat16, or float16 on a GPU"));
  }
  check_device(device);
  check(config);
  const PlainDispatch plain;
  return std::make_shared<const Transformer>(config, weights, device, dtype, prepack);
}

}  // namespace tabes
