// JSON from files nobody vouches for. The parser behind this header is nlohmann-json, kept out of
// it so that only json.cpp pays for compiling it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace tabes::checkpoint {

// Bounds on a document, so that rejecting one costs memory in proportion to its size.
struct JsonLimits {
  size_t depth = 32;
  size_t values = 1'000'000;
  size_t string_bytes = size_t{16} << 20;
  size_t gap_bytes = size_t{1} << 20;  // numbers and runs of spaces
};

// The parser's events in document order. Implementations may throw to stop it.
class JsonEvents {
 public:
  virtual ~JsonEvents() = default;
  virtual void null() = 0;
  virtual void boolean(bool value) = 0;
  virtual void integer(int64_t value) = 0;
  // Everything that is not written as an integer or does not fit int64, and "-0".
  virtual void number(double value) = 0;
  virtual void string(std::string value) = 0;
  virtual void begin_object() = 0;
  virtual void key(std::string name) = 0;
  virtual void end_object() = 0;
  virtual void begin_array() = 0;
  virtual void end_array() = 0;
};

// Parses `text`, the content of `file`. Throws CheckpointError unless it is one JSON document in
// UTF-8 within the limits. Finding repeated keys is left to the receiver, who keeps the keys.
void parse_json(std::string_view text, const std::string& file, JsonEvents& events,
                const JsonLimits& limits);

class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;  // in the order of the file
  using Value = std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object>;

  Json() = default;
  explicit Json(Value value) : value_(std::move(value)) {}

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  // The value if it is of this type, otherwise null.
  const bool* boolean() const { return std::get_if<bool>(&value_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&value_); }
  const double* number() const { return std::get_if<double>(&value_); }
  const std::string* string() const { return std::get_if<std::string>(&value_); }
  const Array* array() const { return std::get_if<Array>(&value_); }
  const Object* object() const { return std::get_if<Object>(&value_); }

  // The member called `key`, or null if there is none or this is no object.
  const Json* find(std::string_view key) const;

  // For messages: the value itself if it is short, otherwise what kind it is.
  std::string describe() const;

 private:
  Value value_;
};

// Parses a whole document and rejects repeated keys.
Json parse_json(std::string_view text, const std::string& file, const JsonLimits& limits = {});

}  // namespace tabes::checkpoint
