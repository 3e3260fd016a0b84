// Memory that is kept from step to step.

#pragma once

#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace dualprox {

constexpr size_t kLine = 64;               // bytes of a cache line
constexpr size_t kHugePage = 2048 * 1024;  // bytes

// Room for numbers, of any content, at a cache line's beginning. Large ones ask for huge pages:
// strips of a tile lie further apart than a page.
template <class Number>
class Room {
 public:
  Number* of(size_t size) {
    if (size > size_) {
      const size_t bytes = size * sizeof(Number), line = bytes < kHugePage ? kLine : kHugePage;
      memory_.reset();
      size_ = 0;
      memory_ = {static_cast<Number*>(::operator new(bytes, std::align_val_t(line))), Free{line}};
      size_ = size;
#ifdef __linux__
      if (line == kHugePage) madvise(memory_.get(), bytes, MADV_HUGEPAGE);
#endif
    }
    return memory_.get();
  }
  Number* data() { return memory_.get(); }
  const Number* data() const { return memory_.get(); }

 private:
  struct Free {
    size_t line = kLine;
    void operator()(Number* memory) const { ::operator delete(memory, std::align_val_t(line)); }
  };
  std::unique_ptr<Number, Free> memory_;
  size_t size_ = 0;
};

}  // namespace dualprox
