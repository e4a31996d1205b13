// Our own CPU kernels by name, for programs that call them past the dispatcher.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "program/arguments.h"

namespace fastmaml {

// A kernel as programs call it: with what its parameters are bound to, no tensor wrapped anew.
struct Kernel {
  // Whether such arguments, and so many results, in a list or not, are what it takes and gives.
  bool (*fits)(const std::vector<program::Argument>& arguments, size_t results, bool list) = nullptr;

  // Puts its results among the values, by number; -1 for one that nobody needs.
  void (*run)(const std::vector<program::Argument>& arguments, const std::vector<int64_t>& results,
              program::Values& values) = nullptr;
};

// The kernel of this op; nothing where there is none that programs can call.
const Kernel* find_kernel(const std::string& name);

// Returns true: it initialises a static.
bool remember_kernel(const char* name, Kernel kernel);

namespace program {

using Type = Argument::Type;
using Tensors = std::vector<Tensor>;

// How a parameter of a kernel is taken from an argument.
template <class T>
struct Taken;

template <>
struct Taken<const Tensor&> {
  static constexpr Type type = Type::tensor;
  static const Tensor& of(const Argument& x, const Values& values) { return known(values, x.value); }
};

template <>
struct Taken<const OptionalTensor&> {
  static constexpr Type type = Type::tensor_or_none;
  static const OptionalTensor& of(const Argument& x, const Values& values) {
    static const OptionalTensor none;
    if (x.value >= 0) known(values, x.value);
    return x.value < 0 ? none : values[x.value];
  }
};

template <>
struct Taken<const Tensors&> {
  static constexpr Type type = Type::tensors;
  static Tensors of(const Argument& x, const Values& values) {
    Tensors found;
    found.reserve(x.list.size());
    for (const int64_t number : x.list) found.push_back(known(values, number));
    return found;
  }
};

template <>
struct Taken<int64_t> {
  static constexpr Type type = Type::integer;
  static int64_t of(const Argument& x, const Values&) { return x.integer; }
};

template <>
struct Taken<double> {
  static constexpr Type type = Type::number;
  static double of(const Argument& x, const Values&) { return x.number; }
};

template <>
struct Taken<bool> {
  static constexpr Type type = Type::boolean;
  static bool of(const Argument& x, const Values&) { return x.integer != 0; }
};

template <>
struct Taken<const Sizes&> {
  static constexpr Type type = Type::integers;
  static const Sizes& of(const Argument& x, const Values&) { return x.list; }
};

template <>
struct Taken<const std::vector<bool>&> {
  static constexpr Type type = Type::booleans;
  static std::vector<bool> of(const Argument& x, const Values&) { return {x.list.begin(), x.list.end()}; }
};

template <>
struct Taken<ScalarType> {
  static constexpr Type type = Type::dtype;
  static ScalarType of(const Argument& x, const Values&) { return static_cast<ScalarType>(x.integer); }
};

// Where the results of a kernel go.
inline void put(Tensor found, int64_t number, Values& values) {
  if (number >= 0) values[number] = std::move(found);
}

inline void give(Tensor found, const std::vector<int64_t>& results, Values& values) {
  put(std::move(found), results[0], values);
}

inline void give(Tensors found, const std::vector<int64_t>& results, Values& values) {
  for (size_t i = 0; i < results.size(); ++i) put(std::move(found.at(i)), results[i], values);
}

template <class... Ts>
void give(std::tuple<Ts...> found, const std::vector<int64_t>& results, Values& values) {
  size_t i = 0;
  std::apply([&](auto&... each) { (put(std::move(each), results[i++], values), ...); }, found);
}

template <class T>
struct Given {  // several lists: programs have no such call
  static constexpr bool can = false, list = false;
  static constexpr size_t count = 0;
};
template <>
struct Given<Tensor> {
  static constexpr bool can = true, list = false;
  static constexpr size_t count = 1;
};
template <>
struct Given<Tensors> {
  static constexpr bool can = true, list = true;
  static constexpr size_t count = 0;
};
template <class... Ts>
  requires(std::is_same_v<Ts, Tensor> && ...)
struct Given<std::tuple<Ts...>> {
  static constexpr bool can = true, list = false;
  static constexpr size_t count = sizeof...(Ts);
};

template <class R, class... Ps>
struct Bound {
  template <R (*function)(Ps...)>
  static constexpr Kernel kernel() {
    if constexpr (!Given<R>::can) {
      return {};
    } else {
      return {[](const std::vector<Argument>& arguments, size_t results, bool list) {
                if (arguments.size() != sizeof...(Ps) || list != Given<R>::list) return false;
                if (!list && results != Given<R>::count) return false;
                size_t i = 0;
                return ((arguments[i++].type == Taken<Ps>::type) && ...);
              },
              [](const std::vector<Argument>& arguments, const std::vector<int64_t>& results, Values& values) {
                [&]<size_t... i>(std::index_sequence<i...>) {
                  give(function(Taken<Ps>::of(arguments[i], values)...), results, values);
                }(std::index_sequence_for<Ps...>{});
              }};
    }
  }
};

template <class R, class... Ps>
Bound<R, Ps...> bound(R (*)(Ps...));

}  // namespace program
}  // namespace fastmaml

// In a STABLE_TORCH_LIBRARY_IMPL block: the op's CPU kernel is this function of the same name.
#define FM_CPU_KERNEL(m, name)                 \
  m.impl(#name, TORCH_BOX(&::fastmaml::name)); \
  ::fastmaml::remember_kernel(                 \
      #name, decltype(::fastmaml::program::bound(&::fastmaml::name))::kernel<&::fastmaml::name>())
