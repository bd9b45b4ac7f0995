#include "checkpoint/families.h"

#include <algorithm>
#include <optional>

#include "checkpoint/checks.h"

namespace tabes::checkpoint {
namespace {

template <typename List, typename Item>
bool contains(const List& list, const Item& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

std::string supported() {
  std::string list;
  for (const Family* family : families()) {
    for (const std::string_view type : family->model_types) {
      list += (list.empty() ? "" : ", ") + std::string(type);
    }
  }
  return "tabes reads " + list;
}

// What "{}" stands for in `name` if it has the form of `pattern`: the layer number, "" if the
// pattern has none, nothing if the name has another form.
std::optional<std::string_view> layer_in(std::string_view pattern, std::string_view name) {
  const size_t hole = pattern.find("{}");
  if (hole == pattern.npos) {
    return pattern == name ? std::optional<std::string_view>("") : std::nullopt;
  }
  const std::string_view head = pattern.substr(0, hole), tail = pattern.substr(hole + 2);
  if (name.size() <= head.size() + tail.size()) return std::nullopt;
  if (!name.starts_with(head) || !name.ends_with(tail)) return std::nullopt;
  const auto layer = name.substr(head.size(), name.size() - head.size() - tail.size());
  if (layer.find_first_not_of("0123456789") != layer.npos) return std::nullopt;
  return layer;
}

std::string with_layer(std::string_view pattern, std::string_view layer) {
  std::string name(pattern);
  const size_t hole = name.find("{}");
  if (hole != name.npos) name.replace(hole, 2, layer);
  return name;
}

}  // namespace

const std::vector<const Family*>& families() {
  static const std::vector<const Family*> all = {&bert_family(), &llada_family()};
  return all;
}

const Family& detect_family(const Config& config, const TensorStore& tensors) {
  if (config.has("model_type")) {
    const std::string type = config.string("model_type", "");
    for (const Family* family : families()) {
      if (contains(family->model_types, type)) return *family;
    }
    config.fail_at("model_type",
                   supported() +
                       (config.has("auto_map") ? "; code from checkpoints is never run" : "") +
                       "; tabes.wrap takes models of transformers");
  }
  const std::vector<std::string> architectures = config.strings("architectures");
  for (const Family* family : families()) {
    for (const std::string& architecture : architectures) {
      if (contains(family->architectures, architecture)) return *family;
    }
  }
  for (const Family* family : families()) {
    const bool there = tensors.find(family->telltale) != nullptr ||
                       tensors.find(inner(*family, family->telltale)) != nullptr;
    if (architectures.empty() && there) return *family;
  }
  config.fail_at("model_type", "nor do the architectures or tensor names tell; " + supported() +
                                   "; tabes.wrap takes models of transformers");
}

std::optional<std::string> foreign_architecture(const Config& config, const Family& family) {
  std::optional<std::string> foreign;
  for (const std::string& name : config.strings("architectures")) {
    if (contains(family.architectures, name)) return std::nullopt;
    foreign = name;
  }
  return foreign;
}

std::vector<std::string_view> telltales() {
  std::vector<std::string_view> names;
  for (const Family* family : families()) names.push_back(family->telltale);
  for (const Family* family : families()) {
    if (!family->outer.empty()) names.push_back(inner(*family, family->telltale));
  }
  return names;
}

std::vector<std::string> candidate_names(const Family& family, std::string_view name) {
  std::vector<std::string> found;
  const size_t dot = name.rfind('.');
  const std::string_view module = dot == name.npos ? name : name.substr(0, dot);
  const std::string_view leaf = dot == name.npos ? std::string_view() : name.substr(dot + 1);
  for (const NameRule& rule : family.names) {
    if (const auto layer = layer_in(rule.ours, name)) {
      found.push_back(with_layer(rule.theirs, *layer));
    } else if (const auto outer = layer_in(rule.ours, module)) {
      const std::string theirs = with_layer(rule.theirs, *outer);
      found.push_back(theirs + "." + std::string(leaf));
      found.push_back(theirs + (leaf == "weight" ? ".gamma" : ".beta"));
    }
  }
  const size_t whole = found.size();
  for (size_t i = 0; i < whole && !family.outer.empty(); ++i) {
    found.emplace_back(inner(family, found[i]));
  }
  return found;
}

std::string_view inner(const Family& family, std::string_view name) {
  if (name.starts_with(family.outer)) name.remove_prefix(family.outer.size());
  return name;
}

bool matches(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0, star = pattern.npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p, ++t;
    } else if (star != pattern.npos) {
      p = star + 1;  // let the last star take one character more
      t = ++resume;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == pattern.npos;
}

}  // namespace tabes::checkpoint
