"""200 sentences of mixed length, language and script, for the parity of sentence encoders."""

from __future__ import annotations

import random
from typing import Final

_SHORT: Final = (
    *("a", "OK", "No.", "Hello, world!", "42", "3.14159 is not pi", "C++ > C?", "e-mail: user@example.org"),
    *("naïve café déjà vu", "Straße, Äpfel, Öl und Übermut", "¿Dónde está la biblioteca?", "O gato dorme ao sol."),
    *("Быстрая коричневая лиса прыгает через ленивую собаку.", "Η γρήγορη αλεπού πηδά πάνω από τον σκύλο."),
    *(
        "שלום עולם",
        "مرحبا بالعالم",
        "नमस्ते दुनिया",
        "สวัสดีชาวโลก",
        "안녕하세요 세계",
        "こんにちは世界",
        "快速的棕色狐狸跳过了懒狗",
    ),
    *("Chào thế giới", "Merhaba dünya, nasılsın?", "Zażółć gęślą jaźń", "Příliš žluťoučký kůň", "ქართული ენა"),
    *(
        "😀🎉 party time 🚀",
        "x² + y² = r²",
        "∀ε>0 ∃δ>0",
        "tabs\tand\nnew lines",
        "ＦＵＬＬ　ｗｉｄｔｈ",
        "e\u0301 composed or not",
    ),
    *(
        "supercalifragilisticexpialidocious",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "[MASK] [CLS] [SEP]",
    ),
    *(
        "Don't you think it's O'Neill's?",
        "“Curly” — dashes… and ‘quotes’",
        "<b>bold</b> &amp; more",
        "https://a.b/c?d=e#f",
    ),
)
_LONG: Final = (
    "The committee met on Tuesday to discuss the proposal, which had been delayed twice because of the weather.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen inside the leaves of green plants.",
    "Der Vertrag wurde nach langen Verhandlungen unterschrieben, obwohl einige Punkte noch offen geblieben waren.",
    "La recette demande deux œufs, un peu de farine, du lait entier et beaucoup de patience devant la poêle.",
    "Memory systems store embeddings beside the documents they came from, so that a later question finds them again.",
    "В начале лета река поднялась так высоко, что мост пришлось закрыть на несколько дней.",
    "昨日の夜、友達と一緒に新しいレストランへ行って、とても美味しい料理を食べました。",
    "She wrote 1,024 lines of code in 3 days, deleted 512 of them, and called the remaining half a success.",
)


def _sentences() -> tuple[str, ...]:
    rng = random.Random(0)
    sentences = list(_SHORT)
    while len(sentences) < 200:
        # a few go past 128 and 256 tokens
        count = rng.choice((1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 9, 14))
        sentences.append(" ".join(rng.choice(_SHORT if rng.random() < 0.4 else _LONG) for _ in range(count)))
    return tuple(sentences)


SENTENCES: Final = _sentences()
