#include "checkpoint/special_tokens.h"

#include <algorithm>

#include "batch/forbidden.h"
#include "checkpoint/checks.h"
#include "checkpoint/tokenizer_files.h"
#include "tabes/error.h"

namespace tabes::checkpoint {
namespace {

using Found = Vocabulary::Found;

class Search {
 public:
  Search(const std::string& folder, const Config& config, const Family& family,
         const TransformerConfig& model)
      : folder_(folder),
        config_(config),
        generation_(read_config(folder + "/generation_config.json")),
        family_(family),
        model_(model) {
    // A damaged tokenizer is of no concern to those who pass token ids, unless the mask is there.
    try {
      settings_ = read_settings(folder);
      vocabulary_.emplace(folder, settings_);
    } catch (const CheckpointError& error) {
      damage_ = error.what();
    }
  }

  const std::string& damage() const { return damage_; }

  int64_t mask(std::optional<int64_t> requested) const {
    if (requested) return requested_id("mask_token_id", *requested);
    std::optional<Found> found = stated("mask_token_id");
    if (!found) found = named("mask_token");
    for (const std::string_view text : family_.mask_texts) {
      if (!found) found = token(text);
    }
    const int64_t usual = family_.usual_mask_token(model_);
    if (!found && usual >= 0) found = Found{usual, config_.file()};
    if (!found && !damage_.empty()) throw CheckpointError(damage_);
    if (!found) {
      fail(config_.file(),
           "the mask token is in none of config.json, generation_config.json and the tokenizer's "
           "files: pass mask_token_id");
    }
    return inside(*found, "the mask token id", "mask_token_id");
  }

  std::vector<int64_t> ends(const std::optional<std::vector<int64_t>>& requested) const {
    std::vector<int64_t> ids;
    const auto add = [&ids](int64_t id) {
      if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
    };
    if (requested) {
      for (const int64_t id : *requested) add(requested_id("eos_token_ids", id));
      return ids;
    }
    static constexpr const char* kKey = "eos_token_id";
    const auto add_stated = [&](const Config& config) {
      try {
        for (const int64_t id : config.integers(kKey, tokens())) add(id);
      } catch (const CheckpointError& error) {
        throw CheckpointError(std::string(error.what()) + "; or pass eos_token_ids");
      }
    };
    add_stated(config_);
    if (generation_) add_stated(*generation_);
    if (const auto found = named("eos_token"); found && !separates(found->id)) {
      add(inside(*found, "the end token id", "eos_token_ids"));
    }
    for (const int64_t id : usual_ends()) add(id);
    return ids;
  }

  // The token at `key` of the configs, or else the one that the tokenizer calls `name`.
  std::optional<int64_t> other(const char* key, const char* name) const {
    std::optional<Found> found;
    if (config_.has(key)) return config_.integer(key, tokens());
    if (generation_ && generation_->has(key)) return generation_->integer(key, tokens());
    found = named(name);
    if (!found || found->id >= model_.vocab_size) return std::nullopt;
    return found->id;
  }

  std::vector<int64_t> special() const {
    if (!family_.keeps_special_apart || !vocabulary_) return {};
    std::vector<int64_t> ids = vocabulary_->special();
    std::erase_if(ids, [&](int64_t id) { return id >= model_.vocab_size; });
    return ids;
  }

 private:
  Range tokens() const { return {0, model_.vocab_size - 1}; }
  std::string range() const { return "0.." + std::to_string(model_.vocab_size - 1); }

  int64_t requested_id(const char* option, int64_t id) const {
    if (id >= 0 && id < model_.vocab_size) return id;
    throw InputError(std::string(option) + ": there is no token " + std::to_string(id) +
                     "; those of the model in " + folder_ + " are " + range());
  }

  int64_t inside(const Found& found, const std::string& what, const char* option) const {
    if (found.id < model_.vocab_size) return found.id;
    fail(found.file, what + " is " + std::to_string(found.id) + " but the model's tokens are " +
                         range() + ": pass " + option);
  }

  std::optional<Found> stated(const char* key) const {
    if (config_.has(key)) return Found{config_.integer(key, kTokenIds), config_.file()};
    if (generation_ && generation_->has(key)) {
      return Found{generation_->integer(key, kTokenIds), generation_->file()};
    }
    return std::nullopt;
  }

  std::optional<Found> token(std::string_view name) const {
    return vocabulary_ ? vocabulary_->find(name) : std::nullopt;
  }

  // The token that the tokenizer's files, or else the family, name so. A name that no vocabulary
  // gives an id says nothing.
  std::optional<Found> named(std::string_view key) const {
    const auto it = settings_.named_tokens.find(std::string(key));
    if (it != settings_.named_tokens.end()) return token(it->second);
    const auto usual = std::ranges::find(family_.usual_names, key, [](auto& n) { return n.first; });
    return usual == family_.usual_names.end() ? std::nullopt : token(usual->second);
  }

  // Whether the token separates sentences or starts a text. Some tokenizers name such a token as
  // eos_token too: it stands behind every text, but a model that writes one goes on behind it.
  bool separates(int64_t id) const {
    const auto is = [&](const char* key) {
      const auto found = named(key);
      return found && found->id == id;
    };
    return is("sep_token") || is("cls_token");
  }

  std::vector<int64_t> usual_ends() const {
    if (!vocabulary_ || vocabulary_->empty()) return family_.usual_eos_tokens(model_);
    std::vector<int64_t> ids;
    for (const std::string_view text : family_.eos_texts) {
      const auto found = token(text);
      // What the model has no row for it cannot write.
      if (found && found->id < model_.vocab_size) ids.push_back(found->id);
    }
    return ids;
  }

  const std::string& folder_;
  const Config& config_;
  const std::optional<Config> generation_;
  TokenizerSettings settings_;
  std::optional<Vocabulary> vocabulary_;
  std::string damage_;  // of the tokenizer's files
  const Family& family_;
  const TransformerConfig& model_;
};

}  // namespace

void find_special_tokens(const std::string& folder, const Config& config, const Family& family,
                         const LoadOptions& options, TransformerConfig& model) {
  const Search search(folder, config, family, model);
  if (options.notice && !search.damage().empty()) options.notice(search.damage());
  model.mask_token_id = search.mask(options.mask_token_id);
  model.eos_token_ids = search.ends(options.eos_token_ids);
  model.bos_token_id = search.other("bos_token_id", "bos_token");
  model.pad_token_id = search.other("pad_token_id", "pad_token");
  model.special_token_ids = never_text(search.special(), model.mask_token_id, model.eos_token_ids);
}

}  // namespace tabes::checkpoint
