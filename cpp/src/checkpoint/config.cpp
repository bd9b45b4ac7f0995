#include "checkpoint/config.h"

#include <algorithm>
#include <utility>

#include "checkpoint/checks.h"

namespace tabes::checkpoint {
namespace {

std::string in_range(Range range) {
  return "it must be an integer in " + std::to_string(range.low) + ".." +
         std::to_string(range.high);
}

bool within(const int64_t* value, Range range) {
  return value != nullptr && *value >= range.low && *value <= range.high;
}

}  // namespace

Config::Config(std::string_view text, std::string file)
    : file_(std::move(file)), root_(parse_json(text, file_)) {
  if (root_.object() == nullptr) fail(file_, "is not a JSON object");
}

const Json* Config::find(std::string_view key) const {
  const Json* value = root_.find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

void Config::fail_at(std::string_view key, const std::string& why) const {
  const Json* value = root_.find(key);
  fail(file_,
       quote(key) + " is " + (value == nullptr ? "missing" : value->describe()) + ": " + why);
}

bool Config::has(std::string_view key) const {
  return find(key) != nullptr;
}

int64_t Config::integer(std::string_view key, Range range) const {
  const Json* value = find(key);
  const int64_t* number = value == nullptr ? nullptr : value->integer();
  if (!within(number, range)) fail_at(key, in_range(range));
  return *number;
}

int64_t Config::integer(std::string_view key, Range range, int64_t fallback) const {
  return has(key) ? integer(key, range) : fallback;
}

double Config::number(std::string_view key, double low, double high, double fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  const double* real = value->number();
  const int64_t* whole = value->integer();
  const double number = real != nullptr ? *real : whole != nullptr ? double(*whole) : low - 1;
  if (!(number >= low && number <= high)) {
    fail_at(key, "it must be a number in " + Json(low).describe() + ".." + Json(high).describe());
  }
  return number;
}

bool Config::boolean(std::string_view key, bool fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (value->boolean() == nullptr) fail_at(key, "it must be true or false");
  return *value->boolean();
}

std::string Config::string(std::string_view key, std::string_view fallback) const {
  const Json* value = find(key);
  if (value == nullptr) return std::string(fallback);
  if (value->string() == nullptr) fail_at(key, "it must be a string");
  return *value->string();
}

std::vector<std::string> Config::strings(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return {};
  if (value->array() == nullptr) fail_at(key, "it must be an array of strings");
  std::vector<std::string> out;
  for (const Json& item : *value->array()) {
    if (item.string() == nullptr) fail_at(key, "it must be an array of strings");
    out.push_back(*item.string());
  }
  return out;
}

std::vector<int64_t> Config::integers(std::string_view key, Range range) const {
  const Json* value = find(key);
  if (value == nullptr) return {};
  if (value->array() == nullptr) return {integer(key, range)};
  std::vector<int64_t> out;
  for (const Json& item : *value->array()) {
    if (!within(item.integer(), range)) fail_at(key, "of each element: " + in_range(range));
    out.push_back(*item.integer());
  }
  return out;
}

void Config::only(std::string_view key, bool value, bool fallback) const {
  if (boolean(key, fallback) != value) {
    fail_at(key, std::string("tabes computes only ") + (value ? "true" : "false"));
  }
}

void Config::only_text(std::string_view key, std::initializer_list<std::string_view> values,
                       std::string_view fallback) const {
  const std::string found = string(key, fallback);
  if (std::find(values.begin(), values.end(), found) != values.end()) return;
  std::string allowed;
  for (const std::string_view value : values) {
    allowed += (allowed.empty() ? "" : " or ") + quote(value);
  }
  fail_at(key, "tabes computes only " + allowed);
}

void Config::only_unset(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return;
  if (value->array() != nullptr && value->array()->empty()) return;
  if (value->object() != nullptr && value->object()->empty()) return;
  fail_at(key, "tabes does not compute this setting");
}

void read_heads(const Config& config, std::string_view heads_key, std::string_view kv_heads_key,
                TransformerConfig& model) {
  model.num_heads = config.integer(heads_key, kHeads);
  model.num_kv_heads = kv_heads_key.empty() ? model.num_heads
                                            : config.integer(kv_heads_key, kHeads, model.num_heads);
  if (model.hidden_size % model.num_heads != 0) {
    config.fail_at(heads_key,
                   "it must divide the hidden size, " + std::to_string(model.hidden_size));
  }
  if (model.num_heads % model.num_kv_heads != 0) {
    config.fail_at(kv_heads_key,
                   "it must divide the number of heads, " + std::to_string(model.num_heads));
  }
  model.head_dim = model.hidden_size / model.num_heads;
  if (model.positions == Positions::rope && model.head_dim % 2 != 0) {
    config.fail_at(heads_key, "it gives heads of odd size " + std::to_string(model.head_dim) +
                                  ", which rotary positions cannot have");
  }
}

}  // namespace tabes::checkpoint
