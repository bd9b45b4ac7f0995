// Reading config.json: every value is checked for type and range where it is fetched, and every
// complaint names the file, the key and the value.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/json.h"
#include "tabes/transformer.h"

namespace tabes::checkpoint {

struct Range {
  int64_t low;
  int64_t high;
};

// Far beyond every model there is, small enough that no product of two of them overflows.
inline constexpr Range kLayers{1, 10'000};
inline constexpr Range kHeads{1, 65'536};
inline constexpr Range kWidth{1, 1 << 20};
inline constexpr Range kMlpWidth{1, 1 << 24};
inline constexpr Range kVocabulary{1, 1 << 24};
inline constexpr Range kLength{1, 1 << 30};
inline constexpr Range kTokenTypes{0, 65'536};

inline constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;

class Config {
 public:
  // Parses the text of `file`. Throws CheckpointError unless it is a JSON object.
  Config(std::string_view text, std::string file);

  const std::string& file() const { return file_; }

  // In all of these a key that is null counts as absent.
  bool has(std::string_view key) const;
  const Json* find(std::string_view key) const;  // null if absent
  const Json::Object& members() const { return *root_.object(); }
  int64_t integer(std::string_view key, Range range) const;
  int64_t integer(std::string_view key, Range range, int64_t fallback) const;
  double number(std::string_view key, double low, double high, double fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string string(std::string_view key, std::string_view fallback) const;
  // The strings in the array at `key`, none if it is absent.
  std::vector<std::string> strings(std::string_view key) const;
  // An integer, an array of integers, or nothing.
  std::vector<int64_t> integers(std::string_view key, Range range) const;

  // Refuse every value of `key` but those the model computes. An absent key has `fallback`.
  void only(std::string_view key, bool value, bool fallback) const;
  void only_text(std::string_view key, std::initializer_list<std::string_view> values,
                 std::string_view fallback) const;
  // Refuses every value but null, [] and {}: the setting is not supported at all.
  void only_unset(std::string_view key) const;

  // Throws CheckpointError("FILE: "KEY" is VALUE: WHY").
  [[noreturn]] void fail_at(std::string_view key, const std::string& why) const;

 private:
  std::string file_;
  Json root_;
};

// num_heads, num_kv_heads and head_dim from hidden_size and the values of these keys.
void read_heads(const Config& config, std::string_view heads_key, std::string_view kv_heads_key,
                TransformerConfig& model);

}  // namespace tabes::checkpoint
