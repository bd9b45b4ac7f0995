#include "checkpoint/tokenizer_files.h"

#include <algorithm>
#include <utility>

#include "checkpoint/checks.h"
#include "checkpoint/file.h"

namespace tabes::checkpoint {
namespace {

int64_t checked_id(int64_t id, std::string_view token, const std::string& file) {
  if (id >= kTokenIds.low && id <= kTokenIds.high) return id;
  fail(file, "the id of " + quote(token) + " is " + std::to_string(id));
}

// Collects names and ids while the document streams by: a document of it all would take many times
// the file's size, most of it merges.
class TokenizerReader final : public JsonEvents {
 public:
  explicit TokenizerReader(TokenList& list) : list_(list) {}

  void null() override { other("null"); }
  void boolean(bool v) override {
    if (in_added()) {
      AddedToken& token = list_.added.back();
      const std::string& field = open_.back().key;
      if (field == "special") token.special = v;
      if (field == "lstrip") token.lstrip = v;
      if (field == "rstrip") token.rstrip = v;
      if (field == "single_word") token.single_word = v;
      if (field == "normalized") token.normalized = v;
    }
    other(v ? "true" : "false");
  }
  void integer(int64_t v) override {
    if (in_vocabulary()) {
      const std::string& token = open_.back().key;
      list_.ids.insert_or_assign(token, checked_id(v, token, list_.file));
    } else if (in_added() && open_.back().key == "id") {
      id_ = Json(v);
    }
    count();
  }
  void number(double v) override {
    if (in_added() && open_.back().key == "id") id_ = Json(v);
    other("no integer");
  }
  void string(std::string v) override {
    if (in_added() && open_.back().key == "content") {
      list_.added.back().content = std::move(v);
    } else if (in_piece()) {
      list_.ids.insert_or_assign(std::move(v), open_[2].values);
    } else if (in_vocabulary()) {
      no_id(quote(v));
    }
    count();
  }
  void begin_object() override {
    if (in_vocabulary()) no_id("an object");
    if (open_.size() == 2 && open_[0].key == "added_tokens" && !open_[1].is_object) {
      list_.added.emplace_back();
      id_ = Json();
    }
    open_.push_back({true, {}, 0});
  }
  void key(std::string name) override { open_.back().key = std::move(name); }
  void end_object() override {
    if (in_added()) end_added();
    end_array();
  }
  void begin_array() override {
    if (in_vocabulary()) no_id("an array");
    open_.push_back({false, {}, 0});
  }
  void end_array() override {
    open_.pop_back();
    count();
  }

 private:
  struct Level {
    bool is_object;
    std::string key;     // of the member being read
    int64_t values = 0;  // read so far
  };

  bool in_list() const {
    return open_.size() >= 3 && open_[0].key == "model" && open_[1].key == "vocab";
  }
  // At a member of model.vocab.
  bool in_vocabulary() const { return open_.size() == 3 && in_list() && open_[2].is_object; }
  // At the piece of a Unigram model, whose vocabulary is a list of pieces and scores. A piece's
  // place in the list is its id.
  bool in_piece() const {
    return open_.size() == 4 && in_list() && !open_[2].is_object && !open_[3].is_object &&
           open_[3].values == 0;
  }
  // At a member of one of the added_tokens.
  bool in_added() const {
    return open_.size() == 3 && open_[0].key == "added_tokens" && !open_[1].is_object &&
           open_[2].is_object;
  }

  void end_added() {
    AddedToken& token = list_.added.back();
    if (token.content.empty()) {
      list_.added.pop_back();
      return;
    }
    if (id_.integer() == nullptr) {
      fail(list_.file, "the id of " + quote(token.content) + " is " + id_.describe());
    }
    token.id = checked_id(*id_.integer(), token.content, list_.file);
  }

  [[noreturn]] void no_id(const std::string& value) {
    fail(list_.file, "the id of " + quote(open_.back().key) + " is " + value);
  }

  // A value that no token is made of.
  void other(const char* value) {
    if (in_vocabulary()) no_id(value);
    count();
  }

  void count() {
    if (!open_.empty()) ++open_.back().values;
  }

  TokenList& list_;
  std::vector<Level> open_;
  Json id_;
};

std::string_view without_blanks(std::string_view line) {
  constexpr const char* kBlanks = " \t\r\n\v\f";
  const size_t first = line.find_first_not_of(kBlanks);
  if (first == line.npos) return line;
  return line.substr(first, line.find_last_not_of(kBlanks) - first + 1);
}

}  // namespace

std::optional<int64_t> TokenList::find(std::string_view name) const {
  const auto token = std::ranges::find(added, name, &AddedToken::content);
  if (token != added.end()) return token->id;
  const auto entry = ids.find(std::string(name));
  return entry == ids.end() ? std::nullopt : std::optional(entry->second);
}

TokenList parse_tokenizer(std::string_view text, const std::string& file) {
  TokenList list;
  list.file = file;
  TokenizerReader reader(list);
  // Merge lists of large vocabularies are long: three values a merge, a million merges.
  parse_json(text, file, reader, {.depth = 64, .values = 8'000'000});
  return list;
}

TokenList parse_vocab_txt(std::string_view text, const std::string& file) {
  TokenList list;
  list.file = file;
  int64_t line = 0;
  for (size_t start = 0; start < text.size(); ++line) {
    const size_t end = std::min(text.find('\n', start), text.size());
    list.ids.insert_or_assign(std::string(without_blanks(text.substr(start, end - start))), line);
    start = end + 1;
  }
  return list;
}

Vocabulary::Vocabulary(const std::string& folder, const TokenizerSettings& settings)
    : settings_(settings) {
  const std::string tokenizer = folder + "/tokenizer.json", lines = folder + "/vocab.txt";
  if (entry_exists(tokenizer)) {
    lists_.push_back(parse_tokenizer(read_text(tokenizer, kMaxTokenizerBytes), tokenizer));
  }
  if (!settings.added_tokens.empty()) {
    const std::string config = folder + "/tokenizer_config.json";
    TokenList added;
    added.file = entry_exists(config) ? config : folder + "/added_tokens.json";
    added.added = settings.added_tokens;
    lists_.push_back(std::move(added));
  }
  if (entry_exists(lines)) {
    lists_.push_back(parse_vocab_txt(read_text(lines, kMaxTokenizerBytes), lines));
  }
}

std::optional<Vocabulary::Found> Vocabulary::find(std::string_view name) const {
  for (const TokenList& list : lists_) {
    if (const auto id = list.find(name)) return Found{*id, list.file};
  }
  return std::nullopt;
}

std::vector<int64_t> Vocabulary::special() const {
  std::vector<int64_t> ids;
  // Where there are a tokenizer.json and a vocab.txt, the former is the tokenizer.
  const bool two = lists_.size() > 1 && !lists_.front().ids.empty();
  for (const TokenList& list : lists_) {
    if (two && &list != &lists_.front() && !list.ids.empty()) continue;
    for (const auto& [name, id] : list.ids) {
      if (names_special_token(name)) ids.push_back(id);
    }
    for (const AddedToken& token : list.added) {
      if (token.special || names_special_token(token.content)) ids.push_back(token.id);
    }
  }
  const auto add = [&](const std::string& name) {
    if (const auto found = find(name)) ids.push_back(found->id);
  };
  for (const auto& [key, name] : settings_.named_tokens) add(name);
  for (const std::string& name : settings_.additional_special_tokens) add(name);
  return ids;
}

}  // namespace tabes::checkpoint

namespace tabes {
namespace {

bool is_number(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == text.npos;
}

}  // namespace

bool names_special_token(std::string_view name) {
  if (name.size() < 3) return false;
  const bool square = name.front() == '[' && name.back() == ']';
  if (!square && !(name.front() == '<' && name.back() == '>')) return false;
  std::string word;
  for (const char c : name.substr(1, name.size() - 2)) {
    word += static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  }
  if (!square && word.size() > 2 && word.front() == '|' && word.back() == '|') {
    word = word.substr(1, word.size() - 2);
  }
  for (const char* known : {"pad", "unk", "cls", "sep", "mask", "bos", "eos"}) {
    if (word == known) return true;
  }
  for (const std::string_view numbered : {"unused", "unused_", "null_"}) {
    if (word.starts_with(numbered) && is_number(std::string_view(word).substr(numbered.size()))) {
      return true;
    }
  }
  // In square brackets it would be the sulphur of a SMILES string.
  return !square && (word == "s" || word == "/s");
}

}  // namespace tabes
