// The table of safetensors files and of the verdicts the reader must come to.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "checkpoint_files.h"

namespace tabes::testing {

struct FileCase {
  std::string name;
  std::string bytes;
  std::string rejection;  // a part of the message; empty: the file is valid
};

// One tensor "t" with these fields, written as they stand.
inline std::string tensor(const std::string& dtype, const std::string& shape,
                          const std::string& offsets, size_t data_bytes) {
  return safetensors(
      R"({"t":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}",
      zeros(data_bytes));
}

inline std::string f32(const std::string& shape, const std::string& offsets, size_t data_bytes) {
  return tensor("\"F32\"", shape, offsets, data_bytes);
}

// An empty U8 tensor whose JSON-escaped name is this.
inline std::string named(const std::string& name) {
  return safetensors("{\"" + name + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})");
}

// The fields of a one-byte tensor at this offset.
inline std::string byte_at(int offset) {
  return R"({"dtype":"U8","shape":[1],"data_offsets":[)" + std::to_string(offset) + "," +
         std::to_string(offset + 1) + "]}";
}

inline std::string length_only(uint64_t length, const std::string& rest) {
  return bytes_of<uint64_t>({length}) + rest;
}

inline std::string metadata(const std::string& value) {
  return safetensors("{\"__metadata__\":" + value + "}");
}

inline std::string many_dimensions(int rank) {
  std::string shape = "[1";
  for (int i = 1; i < rank; ++i) shape += ",1";
  return f32(shape + "]", "[0,4]", 4);
}

inline std::vector<FileCase> valid_files() {
  const std::string zero_size = R"({"dtype":"F32","shape":[0,3],"data_offsets":[0,0]})";
  std::vector<FileCase> cases = {
      {"no tensors", safetensors("{}"), ""},
      {"one tensor", f32("[2,3]", "[0,24]", 24), ""},
      {"rank 0", f32("[]", "[0,4]", 4), ""},
      {"rank 8", many_dimensions(8), ""},
      {"zero size", f32("[0]", "[0,0]", 0), ""},
      {"zero size among others", f32("[5,0,7]", "[0,0]", 0), ""},
      {"zero-size tensors share an offset",
       safetensors("{\"a\":" + zero_size + ",\"b\":" + zero_size + ",\"c\":" + byte_at(0) + "}",
                   "x"),
       ""},
      {"zero size at the end",
       safetensors(
           R"({"a":)" + byte_at(0) + R"(,"b":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}})",
           "x"),
       ""},
      {"header order differs from data order",
       safetensors("{\"a\":" + byte_at(1) + ",\"b\":" + byte_at(0) + "}", "xy"), ""},
      {"trailing spaces pad the header", safetensors("{}      "), ""},
      {"other trailing whitespace", safetensors("{}\n\t\r "), ""},
      {"leading whitespace", safetensors("  {}"), ""},
      {"whitespace inside", safetensors("{ \"a\" : " + byte_at(0) + " \n}", "x"), ""},
      {"unaligned data",
       safetensors(
           "{\"a\":" + byte_at(0) + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
           zeros(5)),
       ""},
      {"NaN and infinity are values",
       safetensors(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
                   bytes_of<uint32_t>({0x7fc00000, 0x7f800000})),
       ""},
      {"empty metadata", metadata("{}"), ""},
      {"metadata null", metadata("null"), ""},
      {"metadata null after tensors",
       safetensors("{\"a\":" + byte_at(0) + ",\"__metadata__\":null}", "x"), ""},
      {"metadata", metadata(R"({"format":"pt","":""})"), ""},
      {"metadata with any text", metadata(R"({"a\nb":"\u0001\ud83d\ude00"})"), ""},
      {"metadata after tensors", safetensors("{\"a\":" + byte_at(0) + ",\"__metadata__\":{}}", "x"),
       ""},
      {"fields in another order",
       safetensors(R"({"t":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}})", "x"), ""},
      {"name with spaces and quotes", named(R"(a \"b\" c)"), ""},
      {"name in UTF-8", named("\u00e9\u4e2d"), ""},
      {"name that looks like a path", named("../../etc/passwd"), ""},
      {"longest name", named(std::string(1024, 'n')), ""},
      {"escaped field name",
       safetensors(R"({"t":{"\u0064type":"U8","shape":[1],"data_offsets":[0,1]}})", "x"), ""},
  };
  const std::pair<const char*, size_t> dtypes[] = {
      {"BOOL", 1},    {"U8", 1},  {"I8", 1},          {"F8_E5M2", 1},    {"F8_E4M3", 1},
      {"F8_E8M0", 1}, {"I16", 2}, {"U16", 2},         {"F16", 2},        {"BF16", 2},
      {"I32", 4},     {"U32", 4}, {"F32", 4},         {"F64", 8},        {"I64", 8},
      {"U64", 8},     {"C64", 8}, {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1}};
  for (const auto& [dtype, size] : dtypes) {
    cases.push_back({std::string("dtype ") + dtype,
                     tensor(std::string("\"") + dtype + "\"", "[3]",
                            "[0," + std::to_string(3 * size) + "]", 3 * size),
                     ""});
  }
  return cases;
}

inline std::vector<FileCase> files_of_another_kind() {
  const std::string lfs =
      "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 16030000000\n";
  return {
      {"empty file", "", "is empty"},
      {"7 bytes", zeros(7), "too few"},
      {"length alone, zero", zeros(8), "invalid JSON"},
      {"length alone", length_only(2, ""), "truncated?"},
      {"length past the end", length_only(100, "{}"), "truncated?"},
      {"length one past the end", length_only(3, "{}"), "truncated?"},
      {"length over 100 MB", length_only(100'000'001, "{}"), "limit of 100000000"},
      {"length 2^63", length_only(uint64_t{1} << 63, "{}"), "limit of 100000000"},
      {"length 2^64 - 1", length_only(~uint64_t{0}, "{}"), "limit of 100000000"},
      {"length 2^64 - 8 (wraps with the prefix)", length_only(~uint64_t{0} - 7, "{}"), "limit"},
      {"big-endian length", std::string("\0\0\0\0\0\0\0\2{}", 10), "limit"},
      {"Git LFS pointer", lfs, "git lfs pull"},
      {"PyTorch archive", std::string("PK\x03\x04\x00\x00\x08\x08", 8) + zeros(90), "never opened"},
      {"Python pickle", "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20" + zeros(90), "never opened"},
      {"GGUF", "GGUF\x03" + zeros(3) + std::string("abcdefgh"), "GGUF"},
      {"GGUF long", "GGUF" + std::string(20, 'x'), "GGUF"},
      {"HDF5", "\x89HDF\r\n\x1a\n" + zeros(90), "HDF5"},
      {"web page", "<!DOCTYPE html><html><body>404</body></html>", "web page"},
      {"bare JSON", R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       "8 bytes of length"},
  };
}

inline std::vector<FileCase> bad_json() {
  return {
      {"empty header", safetensors(""), "invalid JSON"},
      {"blank header", safetensors("   "), "invalid JSON"},
      {"not JSON", safetensors("hello"), "invalid JSON"},
      {"unclosed", safetensors("{"), "invalid JSON"},
      {"text after", safetensors("{}x"), "invalid JSON"},
      {"two documents", safetensors("{}{}"), "invalid JSON"},
      {"trailing comma", safetensors("{\"a\":" + byte_at(0) + ",}", "x"), "invalid JSON"},
      {"comment", safetensors("{/**/}"), "invalid JSON"},
      {"single quotes", safetensors("{'a':1}"), "invalid JSON"},
      {"unquoted key", safetensors("{a:1}"), "invalid JSON"},
      {"byte order mark", safetensors("\xef\xbb\xbf{}"), "byte order mark"},
      {"NUL after the document", safetensors(std::string("{}\0", 3)), "NUL byte"},
      {"NUL and more", safetensors(std::string("{}\0{]", 5)), "NUL byte"},
      {"raw NUL in a name", safetensors(std::string("{\"a\0\":1}", 8)), "NUL byte"},
      {"raw newline in a name", named("a\nb"), "invalid JSON"},
      {"not UTF-8", named("\xff\xfe"), "invalid JSON"},
      {"overlong UTF-8", named("\xc0\xaf"), "invalid JSON"},
      {"UTF-8 surrogate", named("\xed\xa0\x80"), "invalid JSON"},
      {"lone surrogate escape", named("\\ud800"), "invalid JSON"},
      {"bad escape", named("\\x41"), "invalid JSON"},
      {"string runs off the end", safetensors("{\"a"), "invalid JSON"},
      {"escape runs off the end", safetensors("{\"a\\"), "invalid JSON"},
      {"deep arrays", safetensors(std::string(100'000, '[')), "nested deeper"},
      {"deep objects", safetensors("{\"a\":{\"b\":{\"c\":{}}}}"), "nested deeper"},
      {"number beyond float64", f32("[1e999]", "[0,4]", 4), "invalid JSON"},
      {"2 MiB of spaces", safetensors("{}" + std::string(2U << 20, ' ')), "run of spaces"},
      {"2 MiB of digits", safetensors("{\"a\":" + std::string(2U << 20, '1') + "}"), "number or"},
      {"bracket after a space", safetensors("{ [[[[ "), "nested deeper"},
      {"root array", safetensors("[]"), "not a JSON object"},
      {"root string", safetensors("\"a\""), "not a JSON object"},
      {"root number", safetensors("12"), "not a JSON object"},
      {"root null", safetensors("null"), "not a JSON object"},
      {"root true", safetensors("true"), "not a JSON object"},
  };
}

inline std::vector<FileCase> bad_names_and_metadata() {
  const std::string zero_size = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  const auto twice = [&](const std::string& a, const std::string& b) {
    return safetensors("{\"" + a + "\":" + zero_size + ",\"" + b + "\":" + zero_size + "}");
  };
  std::string crowd = "{";
  for (int i = 0; i < 65'537; ++i) crowd += "\"" + std::to_string(i) + "\":\"\",";
  crowd.back() = '}';
  return {
      {"empty name", named(""), "empty name"},
      {"name with NUL", named("a\\u0000b"), "control characters"},
      {"name with escape sequence", named("\\u001b[31mred"), "control characters"},
      {"name with newline", named("a\\nb"), "control characters"},
      {"name with DEL", named("a\x7f"), "control characters"},
      {"name of 1025 bytes", named(std::string(1025, 'n')), "longer than 1024"},
      {"name of 1 MB", named(std::string(1'000'000, 'n')), "longer than 1024"},
      {"name of 17 MiB", named(std::string(17U << 20, 'n')), "string longer than"},
      {"same name twice", twice("a", "a"), "\"a\" is repeated"},
      {"same name escaped", twice("t", "\\u0074"), "\"t\" is repeated"},
      {"same name, other shape",
       safetensors("{\"a\":" + byte_at(0) + ",\"a\":" + byte_at(1) + "}", "xy"), "is repeated"},
      {"same name apart",
       safetensors("{\"a\":" + zero_size + ",\"b\":" + zero_size + ",\"a\":" + zero_size + "}"),
       "is repeated"},
      {"metadata twice", safetensors(R"({"__metadata__":{},"__metadata__":{}})"), "is repeated"},
      {"metadata key twice", metadata(R"({"a":"1","a":"1"})"), "\"a\" is repeated"},
      {"metadata key escaped twice", metadata(R"({"a":"1","\u0061":"2"})"), "\"a\" is repeated"},
      {"metadata null twice", metadata(R"(null,"__metadata__":null)"), "is repeated"},
      {"tensor after null metadata", metadata(R"(null,"t":null)"), "\"t\" is described by null"},
      {"metadata string", metadata("\"a\""), "__metadata__ holds a string"},
      {"metadata array", metadata("[]"), "__metadata__ holds an array"},
      {"metadata number", metadata("1"), "__metadata__ holds a number"},
      {"metadata value number", metadata(R"({"a":1})"), "__metadata__ holds a number"},
      {"metadata value null", metadata(R"({"a":null})"), "__metadata__ holds null"},
      {"metadata value object", metadata(R"({"a":{}})"), "__metadata__ holds an object"},
      {"metadata value array", metadata(R"({"a":[]})"), "__metadata__ holds an array"},
      {"metadata value boolean", metadata(R"({"a":true})"), "__metadata__ holds a boolean"},
      {"too much metadata", metadata(crowd), "too much __metadata__"},
  };
}

inline std::vector<FileCase> bad_fields() {
  const auto fields = [](const std::string& text, size_t data = 0) {
    return safetensors("{\"t\":{" + text + "}}", zeros(data));
  };
  const auto entry = [](const std::string& text) { return safetensors("{\"t\":" + text + "}"); };
  return {
      {"tensor null", entry("null"), "\"t\" is described by null"},
      {"tensor number", entry("4"), "\"t\" is described by a number"},
      {"tensor string", entry("\"F32\""), "\"t\" is described by a string"},
      {"tensor array", entry("[]"), "\"t\" is described by an array"},
      {"tensor true", entry("true"), "\"t\" is described by a boolean"},
      {"no fields", entry("{}"), "lacks one of"},
      {"no dtype", fields(R"("shape":[0],"data_offsets":[0,0])"), "lacks one of"},
      {"no shape", fields(R"("dtype":"U8","data_offsets":[0,0])"), "lacks one of"},
      {"no offsets", fields(R"("dtype":"U8","shape":[0])"), "lacks one of"},
      {"unknown field", fields(R"("dtype":"U8","shape":[0],"data_offsets":[0,0],"x":"U8")"),
       "unknown field \"x\""},
      {"dtype twice", fields(R"("dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0])"),
       "\"dtype\" twice"},
      {"shape twice", fields(R"("dtype":"U8","shape":[0],"shape":[0],"data_offsets":[0,0])"),
       "\"shape\" twice"},
      {"offsets twice",
       fields(R"("dtype":"U8","shape":[0],"data_offsets":[0,0],"data_offsets":[0,0])"),
       "\"data_offsets\" twice"},
      {"unknown dtype", tensor("\"F31\"", "[0]", "[0,0]", 0), "unknown dtype \"F31\""},
      {"lower-case dtype", tensor("\"f32\"", "[0]", "[0,0]", 0), "unknown dtype"},
      {"empty dtype", tensor("\"\"", "[0]", "[0,0]", 0), "unknown dtype"},
      {"dtype smaller than a byte", tensor("\"F4\"", "[2]", "[0,1]", 1), "unknown dtype \"F4\""},
      {"dtype with escape sequence", tensor("\"\\u001b[2J\"", "[0]", "[0,0]", 0), "unknown dtype"},
      {"dtype null", tensor("null", "[0]", "[0,0]", 0), "null where"},
      {"dtype number", tensor("32", "[0]", "[0,0]", 0), "a number where"},
      {"dtype array", tensor("[\"F32\"]", "[0]", "[0,0]", 0), "an array where"},
      {"shape number", f32("4", "[0,4]", 4), "a number where"},
      {"shape null", f32("null", "[0,4]", 4), "null where"},
      {"shape string", f32("\"1\"", "[0,4]", 4), "a string where"},
      {"shape object", f32("{}", "[0,4]", 4), "an object where"},
      {"shape of strings", f32("[\"1\"]", "[0,4]", 4), "a string where"},
      {"shape of booleans", f32("[true]", "[0,4]", 4), "a boolean where"},
      {"shape of null", f32("[null]", "[0,4]", 4), "null where"},
      {"shape of floats", f32("[1.0]", "[0,4]", 4), "no non-negative integer"},
      {"shape of exponents", f32("[1e0]", "[0,4]", 4), "no non-negative integer"},
      {"negative shape", f32("[-1]", "[0,4]", 4), "a negative number"},
      {"two negative sizes", f32("[-1,-1]", "[0,4]", 4), "a negative number"},
      {"minus zero", f32("[-0]", "[0,0]", 0), "no non-negative integer"},
      {"rank 9", many_dimensions(9), "more than 8 dimensions"},
      {"rank 65", many_dimensions(65), "more than 8 dimensions"},
      {"rank 100000", many_dimensions(100'000), "more than 8 dimensions"},
      {"offsets empty", f32("[1]", "[]", 4), "fewer than two"},
      {"one offset", f32("[1]", "[4]", 4), "fewer than two"},
      {"three offsets", f32("[1]", "[0,4,8]", 8), "more than two"},
      {"offsets string", f32("[1]", "\"04\"", 4), "a string where"},
      {"offset float", f32("[1]", "[0.0,4]", 4), "no non-negative integer"},
      {"offset negative", f32("[1]", "[-4,0]", 4), "a negative number"},
      {"offset null", f32("[1]", "[null,4]", 4), "null where"},
  };
}

inline std::vector<FileCase> bad_layout() {
  const auto two = [](const std::string& a, const std::string& b, size_t data) {
    return safetensors(
        R"({"a":{"dtype":"U8","shape":)" + a + R"(},"b":{"dtype":"U8","shape":)" + b + "}}",
        zeros(data));
  };
  std::string shared = "{";
  for (int i = 0; i < 10; ++i) {
    shared += "\"" + std::to_string(i) + R"(":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)";
  }
  shared.back() = '}';
  return {
      {"offsets swapped", f32("[1]", "[4,0]", 4), "wrong order"},
      {"too few bytes for the shape", f32("[2]", "[0,4]", 4), "takes 8 bytes"},
      {"too many bytes for the shape", f32("[1]", "[0,8]", 8), "takes 4 bytes"},
      {"bytes for an empty shape", f32("[0]", "[0,4]", 4), "takes 0 bytes"},
      {"no bytes for a scalar", f32("[]", "[0,0]", 0), "takes 4 bytes"},
      {"data missing altogether", f32("[1]", "[0,4]", 0), "truncated?"},
      {"2 bytes missing", f32("[2,3]", "[0,24]", 22), "truncated?"},
      {"1 byte too many", f32("[1]", "[0,4]", 5), "1 unused bytes lie after"},
      {"another file appended", f32("[1]", "[0,4]", 4) + "PK\x03\x04", "unused bytes lie after"},
      {"data without tensors", safetensors("{}", "x"), "unused bytes lie after"},
      {"hole at the start", f32("[1]", "[4,8]", 8), "lie before tensor \"t\""},
      {"hole between", two(R"([1],"data_offsets":[0,1])", R"([1],"data_offsets":[2,3])", 3),
       "lie before tensor \"b\""},
      {"overlap", two(R"([2],"data_offsets":[0,2])", R"([2],"data_offsets":[1,3])", 3), "overlaps"},
      {"same bytes", two(R"([2],"data_offsets":[0,2])", R"([2],"data_offsets":[0,2])", 2),
       "overlaps"},
      {"one inside another", two(R"([4],"data_offsets":[0,4])", R"([1],"data_offsets":[1,2])", 4),
       "overlaps"},
      {"empty tensor inside another",
       two(R"([4],"data_offsets":[0,4])", R"([0],"data_offsets":[2,2])", 4), "overlaps"},
      {"empty tensor past the end",
       two(R"([1],"data_offsets":[0,1])", R"([0],"data_offsets":[9,9])", 1), "truncated?"},
      {"ten share their data", safetensors(shared, zeros(8)), "overlaps"},
      {"product overflows 64 bits", f32("[4294967296,4294967296]", "[0,0]", 0), "not fit"},
      {"product wraps to the right size", f32("[4611686018427387905,4]", "[0,16]", 16), "not fit"},
      {"bytes overflow", f32("[4611686018427387904]", "[0,0]", 0), "not fit"},
      {"bytes beyond int64", tensor("\"F64\"", "[1152921504606846976]", "[0,0]", 0), "not fit"},
      {"overflow behind a zero", f32("[0,4294967296,4294967296]", "[0,0]", 0), "not fit"},
      {"overflow before a zero", f32("[4294967296,4294967296,0]", "[0,0]", 0), "not fit"},
      {"size 2^63", f32("[9223372036854775808]", "[0,4]", 4), "no non-negative integer"},
      {"size 2^64", f32("[18446744073709551616]", "[0,4]", 4), "no non-negative integer"},
      {"size 2^64 + 1", f32("[18446744073709551617]", "[0,4]", 4), "no non-negative integer"},
      {"offset 2^63 - 1", f32("[1]", "[9223372036854775803,9223372036854775807]", 4), "truncated?"},
      {"offset 2^64 - 1", f32("[1]", "[0,18446744073709551615]", 4), "no non-negative integer"},
      {"offset wraps 8 + header + offset", f32("[1]", "[18446744073709551612,0]", 4),
       "no non-negative integer"},
  };
}

}  // namespace tabes::testing
