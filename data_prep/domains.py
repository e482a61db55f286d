"""Short samples of different kinds of text, written for this project, to see what a tokenizer makes of each."""

from __future__ import annotations

ENGLISH = """\
The ferry left at half past six, as it did every morning, with eleven cars and one very patient horse on its deck.
Martha had meant to finish the letter before they reached the other side, but the wind kept turning the page for her.
"You could always read it to him," said the captain, who had opinions about letters. She wasn't sure that she could.
On the far shore the lamps were still burning; somebody had forgotten them, or hadn't thought it worth the trouble.
By the time the ramp came down, the fog had lifted, and the village looked as though it had been washed and put back.
"""

CODE = '''\
from collections import defaultdict


def group_by(items, key):
    """Lists of items with the same key, in the order in which they were first seen."""
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


class Counter:
    def __init__(self, start: int = 0) -> None:
        self._value = start

    def __iadd__(self, other: int) -> "Counter":
        if not isinstance(other, int) or other < 0:
            raise ValueError(f"cannot add {other!r} to a counter")
        self._value += other
        return self

int main(void) {
    for (int i = 0; i < 10; ++i) { printf("%d: %s\\n", i, names[i] != NULL ? names[i] : "(none)"); }
    return 0;
}
'''

MATHEMATICS = r"""
Let $f : \mathbb{R}^n \to \mathbb{R}$ be convex and differentiable, with $\|\nabla f(x) - \nabla f(y)\| \le L \|x - y\|$.
Then gradient descent, $x_{k+1} = x_k - \frac{1}{L} \nabla f(x_k)$, satisfies
\[ f(x_k) - f(x^\ast) \le \frac{L \, \|x_0 - x^\ast\|^2}{2k} \qquad \text{for all } k \ge 1. \]
Proof. By the descent lemma, $f(x_{k+1}) \le f(x_k) - \frac{1}{2L} \|\nabla f(x_k)\|^2$; sum over $k$ and use convexity.
For example, ∫₀¹ x² dx = 1/3, ∑ᵢ i = n(n+1)/2, and e^{iπ} + 1 = 0; hence √2 ∉ ℚ, while 3² + 4² = 5².
"""

NUMBERS = """\
| year |   harvest (t) | share  |  price |
|------|---------------|--------|--------|
| 1998 |     12,481.50 |  7.25% |  $3.10 |
| 2007 |    108,220.75 | 41.06% |  $4.85 |
| 2019 |  1,904,333.00 | 88.91% | $12.99 |
2021-03-14T09:26:53Z,51.4779,-0.0015,1013.25,7,0x1F4A9,192.168.10.254
2021-03-14T09:27:53Z,51.4780,-0.0014,1013.31,8,0x1F4AA,192.168.10.255
pi = 3.14159265358979, h = 6.62607015e-34, 17 * 23 = 391, 2^32 = 4294967296, 1/7 = 0.142857142857
"""

GERMAN = """\
Am Donnerstag wurde die Straßenbahnlinie nach über zwanzigjähriger Bauzeit endlich bis zum Hauptbahnhof verlängert.
Die Bürgermeisterin sprach von einem Meilenstein der Verkehrsplanung; die Fahrgäste freuten sich vor allem über die Heizung.
Wer früher eine Dreiviertelstunde unterwegs war, braucht nun kaum länger als für ein gemütliches Frühstück.
Ob sich die Geschwindigkeitsbeschränkung in der Altstadt bewährt, soll eine Untersuchung im nächsten Jahr zeigen.
Übrigens: Fahrräder dürfen außerhalb der Hauptverkehrszeiten unentgeltlich mitgenommen werden.
"""

FRENCH = """\
Après la pluie, les élèves sont sortis dans la cour où l'on avait déjà installé les tables pour la fête de l'école.
« Qu'est-ce que c'est ? » demanda la plus petite, en montrant du doigt un gâteau qui penchait dangereusement à gauche.
Personne n'osait répondre, car le maître, d'ordinaire si sévère, l'avait préparé lui-même pendant toute la nuit.
Il n'y eut bientôt plus qu'une assiette vide, et quelqu'un jura que c'était le meilleur dessert qu'il eût jamais goûté.
Le lendemain, naturellement, tout le monde réclama la recette : œufs, sucre, farine, et beaucoup de patience.
"""

CHINESE = """\
清晨的市场比城里任何地方都热闹。卖豆腐的老人把木板擦得干干净净，一边招呼客人，一边和旁边的渔民聊天气。
孩子们背着书包从人群里穿过，手里拿着刚出锅的油条。雨停了以后，河水涨高了许多，桥上的行人都停下来看。
有人说今年的茶叶会比去年好，因为春天来得早；也有人担心，天气暖得太快，虫子也会多起来。
我在桥边的小店坐了一个上午，写完了三封信，却没有一封寄出去。店主笑着说：“不着急，邮局下午才开门。”
"""

ARABIC = """\
في صباح يوم الجمعة اجتمع أهل القرية قرب البئر القديمة ليتحدثوا عن موسم الزيتون الذي اقترب كثيرا.
قال الجد إن المطر جاء متأخرا هذا العام، ولكن الأشجار ما زالت قوية، والأرض لم تنس من زرعها.
كان الأطفال يركضون بين البيوت، ويحملون السلال الفارغة، ويسألون متى يبدأ العمل.
وعندما غابت الشمس عاد الجميع إلى بيوتهم، وبقي ضوء واحد في نافذة المعلمة التي كانت تكتب رسالة طويلة.
"""

EMOJI = """\
omg the cake turned out SO well 🎂🎉🎉 thank you all for coming 🙏🏽❤️ see u next year!!! 😂😂😂
weather today: ☀️ → ⛅ → 🌧️ → ⛈️ (classic 🙃) | trains: 🚆❌ | mood: 😴💤
team 👩‍💻👨🏿‍🔬🧑‍🚀 vs. team 🧑‍🍳👩🏻‍🌾 — 3️⃣:2️⃣ after extra time ⚽️🥅 🇩🇪🇫🇷🇯🇵🇧🇷🇿🇦
to-do: ✅ groceries 🥦🥕🧀 ✅ call mum 📞 ❎ taxes 📉🧾😬 … maybe tomorrow ¯\\_(ツ)_/¯ #nofilter @home
"""


def samples() -> dict[str, list[str]]:
    """{domain: documents}, about 0.5 to 1 kB each."""
    return {"English": [ENGLISH], "code": [CODE], "mathematics": [MATHEMATICS], "numbers": [NUMBERS], "German": [GERMAN],
            "French": [FRENCH], "Chinese": [CHINESE], "Arabic": [ARABIC], "emoji": [EMOJI]}
