#include "checkpoint/plan.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <utility>

#include "checkpoint/checks.h"
#include "tabes/error.h"

namespace tabes::checkpoint {
namespace {

using Shape = std::vector<int64_t>;

class Specs {
 public:
  explicit Specs(bool norm_bias) : norm_bias_(norm_bias) {}

  void tensor(std::string name, Shape shape) {
    list_.push_back({std::move(name), std::move(shape)});
  }
  void linear(const std::string& name, int64_t out, int64_t in, bool bias) {
    tensor(name + ".weight", {out, in});
    if (bias) tensor(name + ".bias", {out});
  }
  void norm(const std::string& name, int64_t size) {
    tensor(name + ".weight", {size});
    if (norm_bias_) tensor(name + ".bias", {size});
  }
  std::vector<TensorSpec> take() { return std::move(list_); }

 private:
  bool norm_bias_;
  std::vector<TensorSpec> list_;
};

void add_layer(const TransformerConfig& c, const std::string& layer, Specs& specs) {
  const int64_t d = c.hidden_size;
  const int64_t queries = c.num_heads * c.head_dim, keys = c.num_kv_heads * c.head_dim;
  specs.norm(layer + "attn_norm", d);
  specs.linear(layer + "q", queries, d, c.qkv_bias);
  specs.linear(layer + "k", keys, d, c.qkv_bias);
  specs.linear(layer + "v", keys, d, c.qkv_bias);
  if (c.qk_norm) {
    specs.tensor(layer + "q_norm.weight", {c.head_dim});
    specs.tensor(layer + "k_norm.weight", {c.head_dim});
  }
  specs.linear(layer + "attn_out", d, queries, c.attention_out_bias);
  specs.norm(layer + "mlp_norm", d);
  if (c.mlp == Mlp::swiglu || c.mlp == Mlp::geglu) {
    specs.linear(layer + "gate", c.mlp_size, d, c.mlp_bias);
  }
  specs.linear(layer + "up", c.mlp_size, d, c.mlp_bias);
  specs.linear(layer + "down", d, c.mlp_size, c.mlp_bias);
}

std::string text_of(const Shape& shape) {
  std::string out = "[";
  for (const int64_t size : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + "]";
}

// Our names that read() may be asked for mean little to a user: messages show the file's.
StoredTensor locate(const TensorSpec& spec, const Family& family, const TensorStore& store) {
  const std::vector<std::string> names = candidate_names(family, spec.name);
  for (const std::string& name : names) {
    const StoredTensor* found = store.find(name);
    if (found == nullptr) continue;
    if (found->info->shape != spec.shape) {
      fail(found->file->path(), "tensor " + quote(name) + " has shape " +
                                    text_of(found->info->shape) + " where config.json asks for " +
                                    text_of(spec.shape));
    }
    return *found;
  }
  const std::string wanted = names.empty() ? spec.name : names.front();
  for (const std::string& name : names) {
    const std::string_view pattern = store.left_out(name);
    if (pattern.empty()) continue;
    throw InputError("ignore: " + quote(pattern) + " leaves out " + quote(name) +
                     ", which the model needs");
  }
  std::string hint;
  for (const auto& [name, stored] : store.tensors()) {
    if (!name.ends_with("." + wanted)) continue;
    const std::string_view prefix = std::string_view(name).substr(0, name.size() - wanted.size());
    hint = " (there is " + quote(name) + ", but not all names start alike)";
    for (const auto& [other, unused] : store.tensors()) {
      if (other.starts_with(prefix)) continue;
      hint.back() = ':';
      hint += " " + quote(other) +
              " does not; if it is no part of the model, leave it out: ignore=[" + quote(other) +
              "])";
      break;
    }
    break;
  }
  fail(store.path(),
       "the tensor " + quote(wanted) + " that config.json asks for is missing" + hint);
}

bool same_content(const StoredTensor& a, const StoredTensor& b) {
  if (a.info->dtype != b.info->dtype || a.info->shape != b.info->shape) return false;
  constexpr uint64_t kPiece = uint64_t{1} << 20;
  const auto left = std::make_unique<char[]>(kPiece), right = std::make_unique<char[]>(kPiece);
  for (uint64_t at = 0; at < a.info->bytes(); at += kPiece) {
    const size_t bytes = std::min(kPiece, a.info->bytes() - at);
    a.file->read(*a.info, at, left.get(), bytes);
    b.file->read(*b.info, at, right.get(), bytes);
    if (std::memcmp(left.get(), right.get(), bytes) != 0) return false;
  }
  return true;
}

// The module that a tensor is of, as a pattern for its tensors.
std::string module_of(std::string_view name) {
  const size_t dot = name.rfind('.');
  return std::string(dot == name.npos ? name : name.substr(0, dot + 1)) +
         (dot == name.npos ? "" : "*");
}

void add_once(std::vector<std::string>& list, std::string item) {
  if (std::ranges::find(list, item) == list.end()) list.push_back(std::move(item));
}

// At most kShown of `items`, quoted.
std::string listed(const std::vector<std::string>& items) {
  constexpr size_t kShown = 8;
  std::string out;
  for (size_t i = 0; i < std::min(items.size(), kShown); ++i) {
    out += (i == 0 ? "" : ", ") + quote(items[i]);
  }
  return out + (items.size() > kShown ? ", ..." : "");
}

// Checks that the tensors nothing asked for are known to be without consequence.
void check_rest(Plan& plan, const TransformerConfig& model, const Family& family,
                const TensorStore& store) {
  std::set<const TensorInfo*> used;
  for (const auto& [name, stored] : plan.weights) used.insert(stored.info);
  for (const Copy& copy : family.copies(model)) {
    const StoredTensor* repeat = store.find(copy.theirs);
    if (repeat == nullptr) repeat = store.find(inner(family, copy.theirs));
    if (repeat == nullptr || !used.insert(repeat->info).second) continue;
    const StoredTensor& original = plan.weights.at(std::string(copy.of));
    if (!same_content(original, *repeat)) {
      fail(repeat->file->path(), "tensor " + quote(copy.theirs) + " differs from " +
                                     quote(original.info->name) +
                                     ", of which config.json makes it a copy");
    }
  }
  std::vector<std::string> strangers, modules;
  for (const auto& [name, stored] : store.tensors()) {
    const auto fits = [name = name](std::string_view p) { return matches(p, name); };
    if (used.contains(stored.info) || std::ranges::any_of(family.buffers, fits)) continue;
    if (std::ranges::any_of(family.heads, fits)) {
      add_once(plan.heads, module_of(name));
      continue;
    }
    strangers.emplace_back(name);
    add_once(modules, module_of(name));
  }
  if (strangers.empty()) return;
  fail(store.path(),
       "holds " + std::to_string(strangers.size()) +
           " tensors that a model of this config.json does not use: " + listed(strangers) +
           ". Another architecture? If they have no part in the logits, leave them "
           "out: ignore=[" +
           listed(modules) + "]");
}

}  // namespace

std::vector<TensorSpec> tensor_specs(const TransformerConfig& c) {
  Specs specs(c.norm == Norm::layer);
  specs.tensor("embed.tokens", {c.vocab_size, c.hidden_size});
  if (c.positions == Positions::learned) {
    specs.tensor("embed.positions", {c.max_length, c.hidden_size});
  }
  if (c.token_types > 0) specs.tensor("embed.types", {c.token_types, c.hidden_size});
  if (c.embedding_norm) specs.norm("embed.norm", c.hidden_size);
  for (int64_t i = 0; i < c.num_layers; ++i) {
    add_layer(c, "layers." + std::to_string(i) + ".", specs);
  }
  if (c.final_norm) specs.norm("final_norm", c.hidden_size);
  if (c.head_transform) {
    specs.linear("head.dense", c.hidden_size, c.hidden_size, true);
    specs.norm("head.norm", c.hidden_size);
  }
  if (!c.head_tied) specs.tensor("head.out.weight", {c.vocab_size, c.hidden_size});
  if (c.head_bias) specs.tensor("head.out.bias", {c.vocab_size});
  return specs.take();
}

Plan make_plan(const TransformerConfig& model, const Family& family, const TensorStore& store) {
  Plan plan;
  for (const TensorSpec& spec : tensor_specs(model)) {
    const StoredTensor stored = locate(spec, family, store);
    plan.bytes += stored.info->bytes();
    plan.weights.emplace(spec.name, stored);
  }
  check_rest(plan, model, family, store);
  return plan;
}

}  // namespace tabes::checkpoint
