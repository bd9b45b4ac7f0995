// Tiny checkpoints of every family, for tests of what surrounds the weights.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint_files.h"

namespace tabes::testing {

// A config.json as key -> JSON text, so that a test can replace or drop single values.
using ConfigText = std::map<std::string, std::string>;

inline std::string to_json(const ConfigText& config) {
  std::string out;
  for (const auto& [key, value] : config) {
    out += (out.empty() ? "{\"" : ",\n \"") + key + "\": " + value;
  }
  return out + "}\n";
}

struct Weight {
  std::string name;
  std::vector<int64_t> shape;
};

struct TinyModel {
  ConfigText config;
  std::vector<Weight> weights;

  std::string weights_file(const std::function<bool(size_t)>& included = {}) const {
    SafetensorsBuilder file;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (included && !included(i)) continue;
      file.add_ramp(weights[i].name, weights[i].shape, static_cast<float>(i));
    }
    return file.bytes();
  }
  void write(const TempFolder& folder, const std::string& prefix = "") const {
    folder.write(prefix + "config.json", to_json(config));
    folder.write(prefix + "model.safetensors", weights_file());
  }
};

inline TinyModel tiny_llada() {
  TinyModel model;
  model.config = {{"model_type", "\"llada\""},
                  {"architectures", "[\"LLaDAModelLM\"]"},
                  {"d_model", "8"},
                  {"n_layers", "2"},
                  {"n_heads", "4"},
                  {"n_kv_heads", "2"},
                  {"mlp_hidden_size", "16"},
                  {"vocab_size", "11"},
                  {"embedding_size", "12"},
                  {"rms_norm_eps", "1e-05"},
                  {"rope_theta", "500000.0"},
                  {"rope", "true"},
                  {"rope_full_precision", "true"},
                  {"activation_type", "\"silu\""},
                  {"block_type", "\"llama\""},
                  {"layer_norm_type", "\"rms\""},
                  {"weight_tying", "false"},
                  {"include_bias", "false"},
                  {"include_qkv_bias", "false"},
                  {"max_sequence_length", "32"},
                  {"mask_token_id", "3"},
                  {"bos_token_id", "1"},
                  {"eos_token_id", "2"},
                  {"pad_token_id", "0"},
                  {"multi_query_attention", "null"},
                  {"alibi", "false"},
                  {"auto_map", R"({"AutoModel": "evil.Model"})"}};
  const std::string top = "model.transformer.";
  model.weights = {{top + "wte.weight", {12, 8}}};
  for (const char* layer : {"0", "1"}) {
    const std::string block = top + "blocks." + layer + ".";
    model.weights.insert(model.weights.end(), {{block + "attn_norm.weight", {8}},
                                               {block + "q_proj.weight", {8, 8}},
                                               {block + "k_proj.weight", {4, 8}},
                                               {block + "v_proj.weight", {4, 8}},
                                               {block + "attn_out.weight", {8, 8}},
                                               {block + "ff_norm.weight", {8}},
                                               {block + "ff_proj.weight", {16, 8}},
                                               {block + "up_proj.weight", {16, 8}},
                                               {block + "ff_out.weight", {8, 16}}});
  }
  model.weights.push_back({top + "ln_f.weight", {8}});
  model.weights.push_back({top + "ff_out.weight", {12, 8}});
  return model;
}

// `old`: as files were before 2020, with gamma and beta and hardly any description.
inline TinyModel tiny_bert(bool old = false) {
  TinyModel model;
  model.config = {{"hidden_size", "8"},         {"num_hidden_layers", "1"},
                  {"num_attention_heads", "2"}, {"intermediate_size", "16"},
                  {"vocab_size", "10"},         {"max_position_embeddings", "20"},
                  {"type_vocab_size", "2"},     {"layer_norm_eps", "1e-12"},
                  {"hidden_act", "\"gelu\""},   {"pruned_heads", "{}"}};
  if (!old) {
    model.config["model_type"] = "\"bert\"";
    model.config["architectures"] = "[\"BertForMaskedLM\"]";
    model.config["mask_token_id"] = "4";
  }
  const auto pair = [&](const std::string& name, std::vector<int64_t> shape, bool norm = false) {
    model.weights.push_back({name + (norm && old ? ".gamma" : ".weight"), shape});
    model.weights.push_back({name + (norm && old ? ".beta" : ".bias"), {shape[0]}});
  };
  const std::string embeddings = "bert.embeddings.", layer = "bert.encoder.layer.0.";
  model.weights = {{embeddings + "word_embeddings.weight", {10, 8}},
                   {embeddings + "position_embeddings.weight", {20, 8}},
                   {embeddings + "token_type_embeddings.weight", {2, 8}}};
  pair(embeddings + "LayerNorm", {8}, true);
  for (const char* name : {"query", "key", "value"}) {
    pair(layer + "attention.self." + name, {8, 8});
  }
  pair(layer + "attention.output.dense", {8, 8});
  pair(layer + "attention.output.LayerNorm", {8}, true);
  pair(layer + "intermediate.dense", {16, 8});
  pair(layer + "output.dense", {8, 16});
  pair(layer + "output.LayerNorm", {8}, true);
  pair("cls.predictions.transform.dense", {8, 8});
  pair("cls.predictions.transform.LayerNorm", {8}, true);
  model.weights.push_back({"cls.predictions.bias", {10}});
  return model;
}

}  // namespace tabes::testing
