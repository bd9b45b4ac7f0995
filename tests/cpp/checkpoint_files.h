// Checkpoint files for tests, well-formed and otherwise.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <typeinfo>
#include <vector>

#include "tabes/error.h"

namespace tabes::testing {

namespace fs = std::filesystem;

// A folder that lasts as long as the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (fs::temp_directory_path() / "tabes-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~TempFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string path(const std::string& name = "") const {
    return name.empty() ? path_.string() : (path_ / name).string();
  }
  std::string write(const std::string& name, std::string_view content) const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << content;
    return path(name);
  }

 private:
  fs::path path_;
};

// The bytes of a safetensors file with this header text and this data.
inline std::string safetensors(std::string_view header, std::string_view data = "") {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(uint64_t{header.size()} >> (8 * i));
  return out.append(header).append(data);
}

inline std::string zeros(size_t n) {
  return std::string(n, '\0');
}

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

// Builds a file tensor by tensor.
class SafetensorsBuilder {
 public:
  SafetensorsBuilder& add(const std::string& name, const std::string& dtype,
                          const std::vector<int64_t>& shape, const std::string& data) {
    std::string sizes;
    for (const int64_t size : shape) sizes += (sizes.empty() ? "" : ",") + std::to_string(size);
    header_ += (header_.empty() ? "\"" : ",\"") + name + R"(":{"dtype":")" + dtype +
               R"(","shape":[)" + sizes + R"(],"data_offsets":[)" + std::to_string(data_.size()) +
               "," + std::to_string(data_.size() + data.size()) + "]}";
    data_ += data;
    return *this;
  }
  // Float32, the i-th element being first + i / 64.
  SafetensorsBuilder& add_ramp(const std::string& name, const std::vector<int64_t>& shape,
                               float first = 0) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) values[i] = first + static_cast<float>(i) / 64.0F;
    return add(name, "F32", shape, bytes_of(values));
  }
  std::string bytes() const { return safetensors("{" + header_ + "}", data_); }

 private:
  std::string header_;
  std::string data_;
};

// Runs `action`, which must throw exactly CheckpointError with a message that names `file` and
// holds `fragment`.
template <typename Action>
void expect_rejected(const Action& action, const std::string& file, const std::string& fragment) {
  try {
    action();
    ADD_FAILURE() << "accepted, expected: " << fragment;
  } catch (const std::exception& error) {
    EXPECT_TRUE(typeid(error) == typeid(CheckpointError)) << typeid(error).name();
    const std::string message = error.what();
    EXPECT_NE(message.find(file), std::string::npos) << message << "\ndoes not name " << file;
    EXPECT_NE(message.find(fragment), std::string::npos) << message << "\nlacks: " << fragment;
    for (const char c : message) EXPECT_GE(static_cast<unsigned char>(c), 0x20) << message;
  }
}

}  // namespace tabes::testing
