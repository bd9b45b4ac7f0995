// The tokenizer's files, as far as the model depends on them: which token has which name.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "checkpoint/config.h"
#include "tabes/checkpoint.h"

namespace tabes::checkpoint {

inline constexpr uint64_t kMaxTokenizerBytes = uint64_t{256} << 20;
inline constexpr Range kTokenIds{0, std::numeric_limits<int32_t>::max()};

// The JSON object in the file `path`, or nothing if there is no such file.
std::optional<Config> read_config(const std::string& path);

TokenizerSettings parse_tokenizer_config(const Config& config);

// The tokens of an added_tokens.json; those among `special` are special.
std::vector<AddedToken> parse_added_tokens(std::string_view text, const std::string& file,
                                           const std::set<std::string, std::less<>>& special);

// All three files in `folder`: read_tokenizer_settings().
TokenizerSettings read_settings(const std::string& folder);

// Names and ids of one file. Of names that come twice the added token counts, or else the last.
struct TokenList {
  std::string file;
  std::unordered_map<std::string, int64_t> ids;
  std::vector<AddedToken> added;

  std::optional<int64_t> find(std::string_view name) const;
};

// Vocabulary and added tokens of a tokenizer.json. Throws CheckpointError if it is no JSON or an
// id no integer.
TokenList parse_tokenizer(std::string_view text, const std::string& file);

// The lines of a vocab.txt, without blanks around them. The line number is the id.
TokenList parse_vocab_txt(std::string_view text, const std::string& file);

// What the tokens of a checkpoint are called.
class Vocabulary {
 public:
  // Reads tokenizer.json and vocab.txt in `folder`, in this order of preference. Added tokens of
  // the settings, which is to outlive it, come in between.
  Vocabulary(const std::string& folder, const TokenizerSettings& settings);

  struct Found {
    int64_t id;
    std::string file;  // that says so
  };
  std::optional<Found> find(std::string_view name) const;

  bool empty() const { return lists_.empty(); }
  // Tokens that are no text by their name, their flag or because the settings name them.
  std::vector<int64_t> special() const;

 private:
  const TokenizerSettings& settings_;
  std::vector<TokenList> lists_;  // the first that knows a name counts
};

}  // namespace tabes::checkpoint
