// tokenizer_config.json, special_tokens_map.json and added_tokens.json.
#include <algorithm>
#include <charconv>
#include <limits>
#include <set>

#include "checkpoint/checks.h"
#include "checkpoint/config.h"
#include "checkpoint/file.h"
#include "checkpoint/tokenizer_files.h"
#include "tabes/checkpoint.h"

namespace tabes::checkpoint {
namespace {

constexpr const char* kNamed[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                  "pad_token", "cls_token", "mask_token"};
// "additional" is what transformers before 5 called them.
constexpr const char* kExtra[] = {"additional_special_tokens", "extra_special_tokens"};

bool is_named(std::string_view key) {
  return std::find(std::begin(kNamed), std::end(kNamed), key) != std::end(kNamed);
}

// The text of a token that is written as a string or as an object with its content.
const std::string* content_of(const Json& token) {
  const Json* content = token.object() == nullptr ? &token : token.find("content");
  return content == nullptr ? nullptr : content->string();
}

// Adds the tokens that `config` names; those that are there already stay unless `overrides`.
void read_names(const Config& config, bool overrides, std::map<std::string, std::string>& names) {
  const auto add = [&](const std::string& key, const std::string& text) {
    if (overrides) {
      names.insert_or_assign(key, text);
    } else {
      names.try_emplace(key, text);
    }
  };
  for (const auto& [key, value] : config.members()) {
    if (!std::string_view(key).ends_with("_token") || value.is_null()) continue;
    if (const std::string* text = content_of(value)) {
      add(key, *text);
    } else if (is_named(key)) {
      config.fail_at(key, "it must be a string, or an object with the string \"content\"");
    }
  }
  // Newer files have tokens of a model's own in an object, by name.
  const Json* extra = config.find("extra_special_tokens");
  if (extra == nullptr || extra->object() == nullptr) return;
  for (const auto& [key, value] : *extra->object()) {
    if (const std::string* text = content_of(value)) add(key, *text);
  }
}

void read_additional(const Config& config, std::vector<std::string>& tokens) {
  for (const char* key : kExtra) {
    const Json* list = config.find(key);
    if (list == nullptr || list->object() != nullptr) continue;
    if (list->array() == nullptr) config.fail_at(key, "it must be an array of tokens");
    for (const Json& token : *list->array()) {
      const std::string* text = content_of(token);
      if (text == nullptr) config.fail_at(key, "it must be an array of tokens");
      if (std::find(tokens.begin(), tokens.end(), *text) == tokens.end()) tokens.push_back(*text);
    }
  }
}

bool flag_of(const Config& config, const std::string& owner, const Json& token, const char* key,
             bool fallback) {
  const Json* value = token.find(key);
  if (value == nullptr || value->is_null()) return fallback;
  if (value->boolean() == nullptr) {
    fail(config.file(), "the added token " + quote(owner) + " has " + quote(key) + " " +
                            value->describe() + ": it must be true or false");
  }
  return *value->boolean();
}

int64_t id_of_key(const Config& config, const std::string& key) {
  int64_t id = -1;
  const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
  if (key.empty() || parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() ||
      id < kTokenIds.low || id > kTokenIds.high) {
    fail(config.file(),
         "its added_tokens_decoder has the key " + quote(key) + ", which is no token id");
  }
  return id;
}

std::vector<AddedToken> read_decoder(const Config& config, const Json& decoder) {
  if (decoder.object() == nullptr) {
    config.fail_at("added_tokens_decoder", "it must be an object of tokens by id");
  }
  std::vector<AddedToken> tokens;
  for (const auto& [key, value] : *decoder.object()) {
    AddedToken token;
    token.id = id_of_key(config, key);
    const std::string* content = content_of(value);
    if (content == nullptr || content->empty()) {
      fail(config.file(), "the added token " + key + " has no \"content\"");
    }
    token.content = *content;
    const auto flag = [&](const char* name, bool fallback) {
      return flag_of(config, *content, value, name, fallback);
    };
    token.special = flag("special", false);
    token.lstrip = flag("lstrip", false);
    token.rstrip = flag("rstrip", false);
    token.single_word = flag("single_word", false);
    token.normalized = flag("normalized", !token.special);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

std::optional<bool> optional_flag(const Config& config, const char* key) {
  if (!config.has(key)) return std::nullopt;
  return config.boolean(key, false);
}

std::optional<std::string> read_template(const Config& config) {
  static constexpr const char* kKey = "chat_template";
  const auto refuse = [&] {
    config.fail_at(kKey,
                   "it must be a string, or a list of objects with the strings name and template");
  };
  const Json* chosen = config.find(kKey);
  if (chosen == nullptr) return std::nullopt;
  if (const Json::Array* entries = chosen->array()) {
    chosen = nullptr;
    for (const Json& entry : *entries) {
      if (entry.object() == nullptr) refuse();
      const Json* name = entry.find("name");
      const bool is_default =
          name != nullptr && name->string() != nullptr && *name->string() == "default";
      if (is_default) chosen = entry.find("template");
    }
  } else if (chosen->object() != nullptr) {
    chosen = chosen->find("default");
  }
  if (chosen == nullptr || chosen->is_null()) return std::nullopt;
  if (chosen->string() == nullptr) refuse();
  return *chosen->string();
}

}  // namespace

std::optional<Config> read_config(const std::string& path) {
  if (!entry_exists(path)) return std::nullopt;
  return Config(read_text(path, kMaxConfigBytes), path);
}

std::vector<AddedToken> parse_added_tokens(std::string_view text, const std::string& file,
                                           const std::set<std::string, std::less<>>& special) {
  const Config added(text, file);
  std::vector<AddedToken> tokens;
  for (const auto& [content, value] : added.members()) {
    AddedToken token;
    token.id = added.integer(content, kTokenIds);
    token.content = content;
    token.special = special.contains(content);
    token.normalized = !token.special;
    tokens.push_back(std::move(token));
  }
  return tokens;
}

TokenizerSettings parse_tokenizer_config(const Config& config) {
  TokenizerSettings settings;
  read_names(config, true, settings.named_tokens);
  read_additional(config, settings.additional_special_tokens);
  if (const Json* decoder = config.find("added_tokens_decoder")) {
    settings.added_tokens = read_decoder(config, *decoder);
  }
  settings.do_lower_case = optional_flag(config, "do_lower_case");
  settings.strip_accents = optional_flag(config, "strip_accents");
  settings.tokenize_chinese_chars = optional_flag(config, "tokenize_chinese_chars");
  settings.tokenizer_class = config.string("tokenizer_class", "");
  settings.chat_template = read_template(config);
  return settings;
}

TokenizerSettings read_settings(const std::string& folder) {
  const std::optional<Config> config = read_config(folder + "/tokenizer_config.json");
  const bool complete = config && config->has("added_tokens_decoder");
  TokenizerSettings settings;
  if (config) settings = parse_tokenizer_config(*config);
  if (const auto map = read_config(folder + "/special_tokens_map.json")) {
    read_names(*map, !complete, settings.named_tokens);
    if (!complete) read_additional(*map, settings.additional_special_tokens);
  }
  const std::string path = folder + "/added_tokens.json";
  if (!complete && entry_exists(path)) {
    std::set<std::string, std::less<>> special(settings.additional_special_tokens.begin(),
                                               settings.additional_special_tokens.end());
    for (const auto& [key, text] : settings.named_tokens) special.insert(text);
    settings.added_tokens = parse_added_tokens(read_text(path, kMaxConfigBytes), path, special);
  }
  std::ranges::stable_sort(settings.added_tokens, {}, &AddedToken::id);
  const auto twin = std::ranges::adjacent_find(settings.added_tokens, {}, &AddedToken::id);
  if (twin != settings.added_tokens.end()) {
    fail(complete ? config->file() : path, "the added tokens " + quote(twin->content) + " and " +
                                               quote(std::next(twin)->content) +
                                               " have the same id, " + std::to_string(twin->id));
  }
  return settings;
}

}  // namespace tabes::checkpoint

namespace tabes {

TokenizerSettings read_tokenizer_settings(const std::string& directory) {
  checkpoint::check_folder(directory);
  return checkpoint::read_settings(directory);
}

}  // namespace tabes
