from abstractinator.objective.by_level import ByLevel


def test_names_of_levels_are_written_with_their_number_if_there_are_several():
  whole = {'total': 3}
  one, two = ByLevel(({'a': 1},), whole), ByLevel(({'a': 1}, {'a': 2}), whole)
  assert one.flattened() == {'a': 1, 'total': 3}
  assert two.flattened() == {'level0/a': 1, 'level1/a': 2, 'total': 3}
  assert ByLevel(whole=whole).flattened() == whole


def test_values_are_joined_level_by_level_and_the_later_ones_win():
  first = ByLevel(({'a': 1, 'b': 2}, {'a': 3}), {'c': 4})
  later = ByLevel(({'b': 5},), {'d': 6})
  assert first | later == ByLevel(
    ({'a': 1, 'b': 5}, {'a': 3}), {'c': 4, 'd': 6}
  )
  assert ByLevel() | first == first
