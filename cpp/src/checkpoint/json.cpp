#include "checkpoint/json.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "checkpoint/checks.h"

namespace tabes::checkpoint {
namespace {

// Looks at the raw bytes for what the parser tolerates (a byte order mark, a NUL as the end of the
// text) or would buffer without bound: deep nesting, long strings, long numbers or runs of spaces.
void scan(std::string_view text, const std::string& file, const JsonLimits& limits) {
  if (text.starts_with("\xef\xbb\xbf")) fail(file, "the JSON starts with a byte order mark");
  if (text.find('\0') != std::string_view::npos) fail(file, "the JSON holds a NUL byte");
  const auto check_length = [&](const char* what, size_t length, size_t limit) {
    if (length <= limit) return;
    fail(file, std::string("the JSON holds a ") + what + " longer than " + std::to_string(limit) +
                   " bytes");
  };
  size_t depth = 0, mark = 0;  // mark: the last bracket, comma, colon or quotation mark
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '{' || c == '[') {
      if (++depth > limits.depth) {
        fail(file, "the JSON is nested deeper than " + std::to_string(limits.depth) + " levels");
      }
    } else if (c == '}' || c == ']') {
      depth -= depth > 0;
    } else if (c == '"') {
      const size_t start = ++i;
      while (i < text.size() && text[i] != '"') i += text[i] == '\\' ? 2 : 1;
      check_length("string", i - start, limits.string_bytes);
    } else if (c != ',' && c != ':') {
      check_length("number or run of spaces", i - mark, limits.gap_bytes);
      continue;
    }
    mark = i;
  }
}

// The parser's own message without its "[json.exception...]" tag, which means nothing to a user.
std::string reason(const std::exception& error) {
  const std::string_view what = error.what();
  const size_t tag = what.find("] ");
  const std::string shown = quote(what.substr(tag == what.npos ? 0 : tag + 2));
  return shown.substr(1, shown.rfind('"') - 1);
}

class Adapter final : public nlohmann::json_sax<nlohmann::json> {
 public:
  Adapter(const std::string& file, JsonEvents& events, const JsonLimits& limits)
      : file_(file), events_(events), left_(limits.values) {}

  bool null() override { return count(), events_.null(), true; }
  bool boolean(bool v) override { return count(), events_.boolean(v), true; }
  bool number_integer(number_integer_t v) override {
    count();
    // The parser calls this for negative literals only, so 0 was written "-0".
    v == 0 ? events_.number(-0.0) : events_.integer(v);
    return true;
  }
  bool number_unsigned(number_unsigned_t v) override {
    count();
    if (v > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      events_.number(static_cast<double>(v));
    } else {
      events_.integer(static_cast<int64_t>(v));
    }
    return true;
  }
  bool number_float(number_float_t v, const string_t&) override {
    return count(), events_.number(v), true;
  }
  bool string(string_t& v) override { return count(), events_.string(std::move(v)), true; }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return count(), events_.begin_object(), true; }
  bool key(string_t& v) override { return events_.key(std::move(v)), true; }
  bool end_object() override { return events_.end_object(), true; }
  bool start_array(size_t) override { return count(), events_.begin_array(), true; }
  bool end_array() override { return events_.end_array(), true; }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& e) override {
    fail(file_, "invalid JSON: " + reason(e));
  }

 private:
  void count() {
    if (left_-- == 0) fail(file_, "the JSON holds too many values");
  }

  const std::string& file_;
  JsonEvents& events_;
  size_t left_;
};

void reject_repeated_keys(const Json::Object& object, const std::string& file) {
  std::vector<std::string_view> keys;
  keys.reserve(object.size());
  for (const auto& [key, value] : object) keys.push_back(key);
  std::sort(keys.begin(), keys.end());
  const auto twin = std::adjacent_find(keys.begin(), keys.end());
  if (twin != keys.end()) fail(file, "the key " + quote(*twin) + " is repeated");
}

class Builder final : public JsonEvents {
 public:
  explicit Builder(const std::string& file) : file_(file) {}

  void null() override { add(Json()); }
  void boolean(bool v) override { add(Json(v)); }
  void integer(int64_t v) override { add(Json(v)); }
  void number(double v) override { add(Json(v)); }
  void string(std::string v) override { add(Json(std::move(v))); }
  void begin_object() override { open_.push_back({Json::Object(), {}}); }
  void key(std::string name) override { open_.back().key = std::move(name); }
  void end_object() override {
    reject_repeated_keys(std::get<Json::Object>(open_.back().value), file_);
    close();
  }
  void begin_array() override { open_.push_back({Json::Array(), {}}); }
  void end_array() override { close(); }

  Json take() { return std::move(root_); }

 private:
  struct Open {
    Json::Value value;
    std::string key;  // of the member being read
  };

  void close() {
    Json done(std::move(open_.back().value));
    open_.pop_back();
    add(std::move(done));
  }

  void add(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (auto* array = std::get_if<Json::Array>(&open_.back().value)) {
      array->push_back(std::move(value));
    } else {
      std::get<Json::Object>(open_.back().value)
          .emplace_back(std::move(open_.back().key), std::move(value));
    }
  }

  const std::string& file_;
  std::vector<Open> open_;
  Json root_;
};

}  // namespace

void parse_json(std::string_view text, const std::string& file, JsonEvents& events,
                const JsonLimits& limits) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first != text.npos && text[first] == '<') {
    fail(file, "is a web page or XML, not JSON: the download has probably failed");
  }
  scan(text, file, limits);
  Adapter adapter(file, events, limits);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &adapter)) fail(file, "invalid JSON");
}

Json parse_json(std::string_view text, const std::string& file, const JsonLimits& limits) {
  Builder builder(file);
  parse_json(text, file, builder, limits);
  return builder.take();
}

const Json* Json::find(std::string_view key) const {
  const Object* members = object();
  if (members == nullptr) return nullptr;
  const auto it = std::find_if(members->begin(), members->end(),
                               [key](const Member& member) { return member.first == key; });
  return it == members->end() ? nullptr : &it->second;
}

std::string Json::describe() const {
  if (is_null()) return "null";
  if (const bool* v = boolean()) return *v ? "true" : "false";
  if (const int64_t* v = integer()) return std::to_string(*v);
  if (const double* v = number()) return nlohmann::json(*v).dump();
  if (const std::string* v = string()) return quote(*v);
  return array() != nullptr ? "an array" : "an object";
}

}  // namespace tabes::checkpoint
