// Random models of every kind a description can ask for.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "tabes/transformer.h"

namespace tabes {

// Weights drawn at random, the same for every request of a name; norms near one.
class RandomWeights final : public WeightSource {
 public:
  std::map<std::string, at::Tensor> drawn;  // in float64, as they were before rounding

  void read(const std::string& name, at::Tensor destination) override {
    const bool is_norm = name.find("norm.weight") != std::string::npos;
    const double scale = is_norm || destination.dim() < 2
                             ? 0.2
                             : 1.5 / std::sqrt(static_cast<double>(destination.size(1)));
    drawn[name] = at::randn(destination.sizes(), at::kDouble) * scale + (is_norm ? 1.0 : 0.0);
    destination.copy_(drawn[name]);
  }
};

struct Kind {
  std::string name;
  TransformerConfig config;
};

inline void PrintTo(const Kind& kind, std::ostream* out) {
  *out << kind.name;
}

inline TransformerConfig small() {
  TransformerConfig c;
  c.family = "test";
  c.vocab_size = 23;
  c.hidden_size = 16;
  c.num_layers = 3;
  c.num_heads = 4;
  c.num_kv_heads = 4;
  c.head_dim = 4;
  c.mlp_size = 20;
  c.max_length = 32;
  c.mask_token_id = 3;
  return c;
}

inline std::vector<Kind> kinds() {
  std::vector<Kind> all{{"llada", small()}};
  const auto add = [&](const char* name, auto change) {
    TransformerConfig c = small();
    change(c);
    all.push_back({name, c});
  };
  add("grouped_queries", [](auto& c) { c.num_kv_heads = 2; });
  add("one_layer", [](auto& c) { c.num_layers = 1; });
  add("dream", [](auto& c) { c.num_kv_heads = 1, c.qkv_bias = true, c.logit_shift = true; });
  add("qwen3", [](auto& c) { c.num_kv_heads = 2, c.qk_norm = true, c.head_tied = true; });
  add("bert", [](auto& c) {
    c.norm = Norm::layer, c.norm_placement = NormPlacement::post, c.embedding_norm = true;
    c.final_norm = false, c.positions = Positions::learned, c.token_types = 2;
    c.qkv_bias = c.attention_out_bias = c.mlp_bias = c.head_bias = true;
    c.mlp = Mlp::gelu, c.head_transform = c.head_tied = true;
  });
  add("geglu_layer_norm", [](auto& c) { c.norm = Norm::layer, c.mlp = Mlp::geglu; });
  add("gelu_tanh_transform", [](auto& c) { c.mlp = Mlp::gelu_tanh, c.head_transform = true; });
  return all;
}

}  // namespace tabes
