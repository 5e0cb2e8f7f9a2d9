"""The page in a real browser, where there is one."""

import json
import shutil
import time

import pytest

from ..helpers import write_image

gradio = pytest.importorskip('gradio')
webdriver = pytest.importorskip('selenium.webdriver')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
DRIVER = shutil.which('chromedriver')
if CHROMIUM is None or DRIVER is None:
    pytest.skip('no chromium and chromedriver', allow_module_level=True)

from mmdet_ebm.explorer.page import build_page  # noqa: E402


@pytest.fixture(scope='module')
def address(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    write_image(folder / 'one.png')
    write_image(folder / 'two.png', seed=1)
    page = build_page(model, folder, score_thr=0.0)
    _, address, _ = page.launch(
        server_name='127.0.0.1', prevent_thread_lock=True, quiet=True
    )
    yield address
    page.close()


@pytest.fixture(scope='module')
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp('downloads')


@pytest.fixture(scope='module')
def browser(address, downloads):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        '--headless=new',
        '--no-sandbox',
        '--disable-dev-shm-usage',
        '--window-size=1400,2400',
    ):
        options.add_argument(argument)
    options.add_experimental_option(
        'prefs', {'download.default_directory': str(downloads)}
    )
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(DRIVER)
    )
    driver.get(address)
    yield driver
    driver.quit()


def wait(ready, seconds=20.0):
    """What ``ready`` gives, as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            value = ready()
        except Exception:  # the page is drawing this part anew
            value = None
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f'not within {seconds} s')


def find(browser, selector):
    return browser.find_element('css selector', selector)


def text(browser, name):
    return find(browser, f'#{name}').text


def choose(browser, name):
    wait(lambda: find(browser, '#chosen input')).click()
    wait(lambda: click_on(browser, '#chosen ul li', name))


def click_on(browser, selector, name):
    for each in browser.find_elements('css selector', selector):
        if name in each.text:
            each.click()
            return True
    return False


def test_a_box_is_looked_at_moved_and_exported(browser, downloads):
    choose(browser, 'one.png')
    wait(lambda: 'Box 0' in text(browser, 'status'))
    first = text(browser, 'reading')
    assert 'placed' in first

    # Another box by its row in the table.
    cell = wait(lambda: find(browser, '#table [data-testid="cell-1-1"]'))
    browser.execute_script('arguments[0].scrollIntoView()', cell)
    webdriver.ActionChains(browser).click(cell).perform()
    wait(lambda: 'Box 1' in text(browser, 'status'))

    # A click into the picture chooses a box as well.
    picture = find(browser, '#both img')
    browser.execute_script('arguments[0].scrollIntoView()', picture)
    left = -int(0.45 * picture.size['width'])
    webdriver.ActionChains(browser).move_to_element_with_offset(
        picture, left, 0
    ).click().perform()
    wait(lambda: 'Box 1' not in text(browser, 'status'))
    wait(lambda: 'Box' in text(browser, 'status'))

    # The moved box is worth less than the placed one.
    number = find(browser, 'input[aria-label*="shift in x"][type=number]')
    browser.execute_script('arguments[0].scrollIntoView()', number)
    number.clear()
    number.send_keys('0.3', '\ue007')

    def readings():
        lines = text(browser, 'reading').splitlines()
        table = {line.split()[0]: line.split()[1:] for line in lines}
        moved, placed = (table[name] for name in ('moved', 'placed'))
        return moved != placed and (moved, placed)

    moved, placed = wait(readings)
    assert float(moved[2]) < float(placed[2])

    wait(lambda: find(browser, '#json')).click()
    (file,) = wait(lambda: list(downloads.glob('*.json')))
    report = json.loads(wait(file.read_text))
    assert len(report['path']) == len(report['logdensities'])
    assert report['choices']['prior'] is True


def test_without_the_prior_the_box_is_another_one(browser):
    choose(browser, 'two.png')
    wait(lambda: 'Box' in text(browser, 'status'))
    before = text(browser, 'reading')
    box = find(browser, '#prior input')
    browser.execute_script('arguments[0].scrollIntoView()', box)
    box.click()
    wait(lambda: text(browser, 'reading') not in ('', before))


def test_nothing_is_wrong_in_the_log_of_the_browser(browser):
    severe = [
        entry
        for entry in browser.get_log('browser')
        if entry['level'] == 'SEVERE' and 'favicon' not in entry['message']
    ]
    assert not severe
