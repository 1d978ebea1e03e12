import unittest

from main import answer


class Answers(unittest.TestCase):
    def test_greets(self):
        self.assertIn("/x", answer("/x"))


if __name__ == "__main__":
    unittest.main()
