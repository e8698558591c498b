"""Scripts that have no spaces between words, as characters for the inside of a regular expression's brackets."""

KANA = r"\u3040-\u30ff\u31f0-\u31ff"
CHINESE = r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # in Japanese, too
UNSPACED = rf"\u0e00-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff{KANA}{CHINESE}"  # Thai to Burmese, Khmer
