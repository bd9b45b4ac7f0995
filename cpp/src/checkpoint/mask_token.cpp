#include "checkpoint/mask_token.h"

#include <algorithm>
#include <limits>

#include "checkpoint/checks.h"
#include "checkpoint/file.h"
#include "tabes/error.h"

namespace tabes::checkpoint {
namespace {

constexpr uint64_t kMaxTokenizerBytes = uint64_t{256} << 20;
constexpr Range kAnyId{0, std::numeric_limits<int32_t>::max()};

std::optional<int64_t> id_of(const Json* value, const std::string& file, std::string_view text) {
  if (value == nullptr) return std::nullopt;
  const int64_t* id = value->integer();
  if (id == nullptr || *id < kAnyId.low || *id > kAnyId.high) {
    fail(file, "the id of " + quote(text) + " is " + value->describe());
  }
  return *id;
}

std::optional<int64_t> mask_in_added_tokens(const Json& root, const std::string& file,
                                            std::string_view text) {
  const Json* added = root.find("added_tokens");
  if (added == nullptr || added->array() == nullptr) return std::nullopt;
  for (const Json& token : *added->array()) {
    const Json* content = token.find("content");
    if (content != nullptr && content->string() != nullptr && *content->string() == text) {
      return id_of(token.find("id"), file, text);
    }
  }
  return std::nullopt;
}

struct Found {
  int64_t id;
  std::string where;
};

std::optional<Found> search(const std::string& folder, const Config& config, const Family& family) {
  if (config.has("mask_token_id")) {
    return Found{config.integer("mask_token_id", kAnyId), config.file()};
  }
  std::string path = folder + "/generation_config.json";
  if (entry_exists(path)) {
    const File file(path);
    const Config generation(file.read_all(kMaxConfigBytes), path);
    if (generation.has("mask_token_id")) {
      return Found{generation.integer("mask_token_id", kAnyId), path};
    }
  }
  path = folder + "/tokenizer.json";
  if (entry_exists(path)) {
    const auto id =
        mask_in_tokenizer(File(path).read_all(kMaxTokenizerBytes), path, family.mask_texts);
    if (id) return Found{*id, path};
  }
  path = folder + "/vocab.txt";
  if (entry_exists(path)) {
    const auto id = mask_in_vocab_txt(File(path).read_all(kMaxTokenizerBytes), family.mask_texts);
    if (id) return Found{*id, path};
  }
  return std::nullopt;
}

}  // namespace

std::optional<int64_t> mask_in_vocab_txt(std::string_view text,
                                         const std::vector<std::string_view>& texts) {
  for (const std::string_view wanted : texts) {
    int64_t line = 0;
    for (size_t start = 0; start < text.size(); ++line) {
      const size_t end = std::min(text.find('\n', start), text.size());
      std::string_view token = text.substr(start, end - start);
      if (token.ends_with('\r')) token.remove_suffix(1);
      if (token == wanted) return line;
      start = end + 1;
    }
  }
  return std::nullopt;
}

std::optional<int64_t> mask_in_tokenizer(std::string_view text, const std::string& file,
                                         const std::vector<std::string_view>& texts) {
  // Merge lists of large vocabularies are long: three values a merge, a million merges.
  const Json root = parse_json(text, file, {.depth = 64, .values = 8'000'000});
  const Json* model = root.find("model");
  const Json* vocabulary = model == nullptr ? nullptr : model->find("vocab");
  for (const std::string_view wanted : texts) {
    if (const auto id = mask_in_added_tokens(root, file, wanted)) return id;
    const Json* entry = vocabulary == nullptr ? nullptr : vocabulary->find(wanted);
    if (const auto id = id_of(entry, file, wanted)) return id;
  }
  return std::nullopt;
}

int64_t find_mask_token(const std::string& folder, const Config& config, const Family& family,
                        const TransformerConfig& model, std::optional<int64_t> requested) {
  const std::string range = "0.." + std::to_string(model.vocab_size - 1);
  if (requested) {
    if (*requested >= 0 && *requested < model.vocab_size) return *requested;
    throw InputError("mask_token_id is " + std::to_string(*requested) +
                     ": the tokens of the model in " + folder + " are " + range);
  }
  std::optional<Found> found = search(folder, config, family);
  const int64_t usual = family.usual_mask_token(model);
  if (!found && usual >= 0) found = Found{usual, config.file()};
  if (!found) {
    fail(config.file(),
         "the mask token is not in config.json, tokenizer.json or vocab.txt: pass mask_token_id");
  }
  if (found->id >= model.vocab_size) {
    fail(found->where, "the mask token id is " + std::to_string(found->id) +
                           " but the model's tokens are " + range + ": pass mask_token_id");
  }
  return found->id;
}

}  // namespace tabes::checkpoint
