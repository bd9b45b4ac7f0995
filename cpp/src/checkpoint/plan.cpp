#include "checkpoint/plan.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <utility>

#include "checkpoint/checks.h"

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
  fail(store.path(), "the tensor " + quote(names.empty() ? spec.name : names.front()) +
                         " that config.json asks for is missing");
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

// Checks that the tensors nothing asked for are known to be without consequence.
void check_rest(const Plan& plan, const TransformerConfig& model, const Family& family,
                const TensorStore& store) {
  std::set<std::string_view> used;
  for (const auto& [name, stored] : plan.weights) used.insert(stored.info->name);
  for (const Copy& copy : family.copies(model)) {
    const StoredTensor* repeat = store.find(copy.theirs);
    if (repeat == nullptr || !used.insert(copy.theirs).second) continue;
    const StoredTensor& original = plan.weights.at(std::string(copy.of));
    if (!same_content(original, *repeat)) {
      fail(repeat->file->path(), "tensor " + quote(copy.theirs) + " differs from " +
                                     quote(original.info->name) +
                                     ", of which config.json makes it a copy");
    }
  }
  size_t strangers = 0;
  std::string_view first;
  for (const auto& [name, stored] : store.tensors()) {
    const auto ignorable = [name = name](std::string_view p) { return matches(p, name); };
    if (used.contains(name) || std::ranges::any_of(family.ignorable, ignorable)) continue;
    if (strangers++ == 0) first = name;
  }
  if (strangers == 0) return;
  fail(store.path(), "holds " + std::to_string(strangers) +
                         " tensors that a model of this config.json does not use, e.g. " +
                         quote(first) + ": another architecture?");
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
