// The file of cases that tests/dump_cases.py writes, little-endian: "MNV3CASE", the number of cases, the cases. A
// string is its length and its characters; every integer is an int64, every real a float64.
#pragma once
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "driver/stand_in.h"

namespace mnv3_fast {

// kind: T tensor, t optional tensor, i int, f float, I list of ints, L list of tensors.
struct Argument {
  char kind;
  int64_t integer = 0;
  double real = 0;
  std::vector<int64_t> integers;
  std::vector<std::unique_ptr<AtenTensorOpaque>> tensors;  // none for an optional one that is not given
};

// What one output should be, dense: torch's float32, the exact values, and how large our error may be.
struct Expected {
  std::vector<int64_t> sizes;
  std::vector<float> theirs;
  std::vector<double> exact;
  double relative_limit, max_limit;
};

struct Case {
  std::string op, name;
  bool planted;  // a fault is in the arguments: must be found
  std::vector<Argument> arguments;
  bool is_integer;  // the result is `integer` and no tensor
  int64_t integer;
  std::vector<Expected> outputs;
};

class CaseFile {
 public:
  explicit CaseFile(const char* path);
  ~CaseFile();
  CaseFile(const CaseFile&) = delete;
  CaseFile& operator=(const CaseFile&) = delete;
  int64_t count() const { return count_; }
  Case next();

 private:
  template <class T>
  std::vector<T> array(int64_t count);
  template <class T>
  T one() {
    return array<T>(1)[0];
  }
  std::string text();
  std::vector<int64_t> integers() { return array<int64_t>(one<int64_t>()); }
  std::unique_ptr<AtenTensorOpaque> tensor();
  Argument argument(char kind);
  Expected expected();

  std::FILE* file_;
  int64_t count_ = 0;
};

}  // namespace mnv3_fast
